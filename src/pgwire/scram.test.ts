import fc from 'fast-check'
import { createHash, createHmac, pbkdf2Sync } from 'node:crypto'
import { expect, test } from 'vitest'
import { md5Password, ScramClient } from './scram.ts'

/** Source: RFC 7677, section 3. The RFC has user=user in the first message; PostgreSQL's is empty, so the proof differs. */
const NONCE = 'rOprNGfwEbeRWgbNEkqO'
const SERVER_FIRST = 'r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096'

const hmac = (key: Buffer, text: string): Buffer => createHmac('sha256', key).update(text).digest()

/** The server's side, written from RFC 5802 section 3, for an arbitrary user name. */
function serverSide(password: string, first: string, serverFirst: string, withoutProof: string) {
  const salt = Buffer.from(/,s=([^,]*)/.exec(serverFirst)![1]!, 'base64')
  const iterations = Number(/,i=(\d+)/.exec(serverFirst)![1]!)
  const salted = pbkdf2Sync(password, salt, iterations, 32, 'sha256')
  const storedKey = createHash('sha256').update(hmac(salted, 'Client Key')).digest()
  const message = `${first.replace(/^n,,/, '')},${serverFirst},${withoutProof}`
  return {
    accepts(proof: Buffer): boolean {
      const clientKey = Buffer.from(hmac(storedKey, message).map((byte, i) => byte ^ proof[i]!))
      return createHash('sha256').update(clientKey).digest().equals(storedKey)
    },
    signature: hmac(hmac(salted, 'Server Key'), message).toString('base64'),
  }
}

test('the test server agrees with the vectors of RFC 7677', () => {
  const withoutProof = 'c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0'
  const server = serverSide('pencil', `n,,n=user,r=${NONCE}`, SERVER_FIRST, withoutProof)
  expect(server.accepts(Buffer.from('dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=', 'base64'))).toBe(true)
  expect(server.signature).toBe('6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=')
})

test('the exchange of RFC 7677 with the empty user of PostgreSQL', () => {
  const client = new ScramClient('pencil', NONCE)
  expect(client.first).toBe(`n,,n=,r=${NONCE}`)
  const final = client.final(SERVER_FIRST)
  const [withoutProof, proof] = final.split(',p=')
  expect(withoutProof).toBe('c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0')
  const server = serverSide('pencil', client.first, SERVER_FIRST, withoutProof!)
  expect(server.accepts(Buffer.from(proof!, 'base64'))).toBe(true)
  client.verify(`v=${server.signature}`)
})

test('any password: the server that knows it is satisfied, and one that does not is found out', () => {
  fc.assert(
    fc.property(fc.string(), fc.base64String({ minLength: 4 }), (password, nonce) => {
      const client = new ScramClient(password, nonce)
      const serverFirst = `r=${nonce}server,s=c2FsdA==,i=7`
      const [withoutProof, proof] = client.final(serverFirst).split(',p=')
      const server = serverSide(password, client.first, serverFirst, withoutProof!)
      expect(server.accepts(Buffer.from(proof!, 'base64'))).toBe(true)
      client.verify(`v=${server.signature}`)
      const impostor = serverSide(`${password}x`, client.first, serverFirst, withoutProof!)
      expect(() => client.verify(`v=${impostor.signature}`)).toThrow('does not know the password')
    }),
    { numRuns: 50 },
  )
})

test.each(['v=', 'v=AAAA', '', 'x', 'e=invalid-proof'])('a last message %j is refused', (message) => {
  const client = new ScramClient('pencil', NONCE)
  client.final(SERVER_FIRST)
  expect(() => client.verify(message)).toThrow('SCRAM')
  expect(client.verified).toBe(false)
})

test('a last message before the first is refused', () => {
  expect(() => new ScramClient('pencil', NONCE).verify('v=')).toThrow('SCRAM')
})

test.each([
  ['another nonce', 'r=abc,s=c2FsdA==,i=4096'],
  ['only our nonce', `r=${NONCE},s=c2FsdA==,i=4096`],
  ['no salt', `r=${NONCE}x,i=4096`],
  ['no iterations', `r=${NONCE}x,s=c2FsdA==`],
  ['zero iterations', `r=${NONCE}x,s=c2FsdA==,i=0`],
  ['iterations that would take for ever', `r=${NONCE}x,s=c2FsdA==,i=2000000000`],
  ['nothing', ''],
])('a first message with %s is refused', (_, message) => {
  expect(() => new ScramClient('pencil', NONCE).final(message)).toThrow('SCRAM')
})

test('md5', () => {
  const inner = createHash('md5').update('secretann').digest('hex')
  const outer = createHash('md5').update(Buffer.concat([Buffer.from(inner), Buffer.of(1, 2, 3, 4)]))
  expect(md5Password('ann', 'secret', Buffer.of(1, 2, 3, 4))).toBe(`md5${outer.digest('hex')}`)
})

// Source: RFC 4013, section 3, and the mapping order of PostgreSQL's src/common/saslprep.c.
test.each([
  ['I\u00adX', 'IX'],
  ['user', 'user'],
  ['USER', 'USER'],
  ['\u00aa', 'a'],
  ['\u2168', 'IX'],
  ['a\u00a0b\u3000c', 'a b c'],
  // Prohibited, or mixed in direction: the password is used as it is.
  ['\u2168\u0007', '\u2168\u0007'],
  ['\u2168\u06271', '\u2168\u06271'],
])('password %j is prepared as %j', (typed, prepared) => {
  const first = `r=${NONCE}x,s=c2FsdA==,i=7`
  expect(new ScramClient(typed, NONCE).final(first)).toBe(new ScramClient(prepared, NONCE).final(first))
})
