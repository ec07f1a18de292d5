// A certified OpenID provider for the tests, on the loopback. It prints its issuer, and ends with its input.
//
// Each line of its input is an order in JSON; it prints "done" when that is in force. What is meant for the tests
// begins with "> ":
//   {"keys": ["k2", "k1"]}   publish these keys; the first of them signs from now on

import { generateKeyPairSync } from 'node:crypto';
import http from 'node:http';
import readline from 'node:readline';

import { Provider } from 'oidc-provider';

const made = new Map();

// The private key of that name, the same for the life of this process.
function key(name) {
  if (!made.has(name)) {
    const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
    made.set(name, { ...privateKey.export({ format: 'jwk' }), kid: name, use: 'sig', alg: 'ES256' });
  }
  return made.get(name);
}

// What has been issued outlives a change of keys: whoever is just signing in goes on under the new ones.
const issued = new Map();

class Issued {
  constructor(kind) {
    this.kind = kind;
  }

  at(id) {
    return `${this.kind}:${id}`;
  }

  async upsert(id, payload) {
    issued.set(this.at(id), payload);
  }

  async find(id) {
    return issued.get(this.at(id));
  }

  async findByUid(uid) {
    return [...issued.values()].find((payload) => payload.kind === this.kind && payload.uid === uid);
  }

  async consume(id) {
    Object.assign(await this.find(id), { consumed: Math.floor(Date.now() / 1000) });
  }

  async destroy(id) {
    issued.delete(this.at(id));
  }

  async revokeByGrantId(grantId) {
    for (const [at, payload] of issued) if (payload.grantId === grantId) issued.delete(at);
  }
}

function provider(issuer, names) {
  const server = new Provider(issuer, {
    adapter: Issued,
    jwks: { keys: names.map(key) },
    cookies: { keys: ['only for tests'] },
    clients: [
      {
        client_id: 'app',
        application_type: 'native',
        token_endpoint_auth_method: 'none',
        redirect_uris: ['http://127.0.0.1/callback'],
        grant_types: ['authorization_code'],
        response_types: ['code'],
        id_token_signed_response_alg: 'ES256',
      },
    ],
    clientDefaults: { id_token_signed_response_alg: 'ES256' },
    enabledJWA: { idTokenSigningAlgValues: ['ES256'] },
    pkce: { required: () => true },
    findAccount: (_, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
    features: {
      resourceIndicators: {
        enabled: true,
        defaultResource: () => 'urn:weir:tests',
        useGrantedResource: () => true,
        getResourceServerInfo: () => ({
          scope: 'openid',
          audience: 'weir',
          accessTokenFormat: 'jwt',
          accessTokenTTL: 600,
          jwt: { sign: { alg: 'ES256' } },
        }),
      },
    },
    extraTokenClaims: (_, token) => {
      const [name, org = 'acme'] = token.accountId.split('@');
      return { groups: ['analysts'], org, name: `${name} of ${org}` };
    },
    ttl: { Interaction: 600, Session: 600, Grant: 600, IdToken: 600 },
  });
  server.on('server_error', (_, error) => console.error(error));
  return server.callback();
}

let answer = () => {};
const server = http.createServer((request, response) => answer(request, response));
server.listen(0, '127.0.0.1', () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  answer = provider(issuer, ['k1']);
  console.log(`> ${issuer}`);
  readline
    .createInterface({ input: process.stdin })
    .on('line', (line) => {
      answer = provider(issuer, JSON.parse(line).keys);
      console.log('> done');
    })
    .on('close', () => process.exit(0));
});
