"""What an operator must know, said once per change and not once per turn."""

from __future__ import annotations

from proxy.telemetry.log import Log


class Notices:
    """Topics that are in trouble, with the sentence that was last said about each."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.troubled: dict[str, str] = {}

    def trouble(self, topic: str, sentence: str) -> None:
        """Says it, unless the topic is in trouble already."""
        if topic not in self.troubled:
            self.log.error(sentence, topic=topic)
        self.troubled[topic] = sentence

    def well(self, topic: str) -> None:
        """Says that the trouble is over, if there was one."""
        if self.troubled.pop(topic, None) is not None:
            self.log.info(f"{topic} works again", topic=topic)
