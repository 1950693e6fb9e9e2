import { createHash, createHmac, pbkdf2Sync, randomBytes, timingSafeEqual } from 'node:crypto'
import { saslPrep } from './saslprep.ts'

export const SCRAM_SHA_256 = 'SCRAM-SHA-256'

/**
 * The client's side of SCRAM-SHA-256 without channel binding: `first`, then `final(serverFirst)`, then
 * `verify(serverFinal)`. A wrong order or a server that does not know the password throws an Error whose message is fit
 * to show. Source: RFC 5802, RFC 7677; PostgreSQL sends the user name in the start-up message, so it is empty here.
 */
export class ScramClient {
  readonly #password: string
  readonly #nonce: string
  #serverSignature: Buffer | undefined
  #verified = false

  constructor(password: string, nonce: string = randomBytes(18).toString('base64')) {
    this.#password = saslPrep(password)
    this.#nonce = nonce
  }

  /** Whether the server has proved that it knows the password. */
  get verified(): boolean {
    return this.#verified
  }

  get first(): string {
    return `n,,${this.#firstBare}`
  }

  get #firstBare(): string {
    return `n=,r=${this.#nonce}`
  }

  final(serverFirst: string): string {
    const fields = parseFields(serverFirst)
    const nonce = fields.get('r') ?? ''
    const salt = fields.get('s')
    const iterations = Number(fields.get('i'))
    if (!nonce.startsWith(this.#nonce) || nonce === this.#nonce)
      throw new Error('SCRAM: the server changed the nonce')
    if (!salt || !Number.isInteger(iterations) || iterations < 1 || iterations > 10_000_000) {
      throw new Error('SCRAM: the server sent no usable salt or iteration count')
    }
    const salted = pbkdf2Sync(this.#password, Buffer.from(salt, 'base64'), iterations, 32, 'sha256')
    const clientKey = hmac(salted, 'Client Key')
    const storedKey = createHash('sha256').update(clientKey).digest()
    const withoutProof = `c=biws,r=${nonce}`
    const authMessage = `${this.#firstBare},${serverFirst},${withoutProof}`
    const signature = hmac(storedKey, authMessage)
    const proof = Buffer.alloc(32)
    for (let i = 0; i < 32; i++) proof[i] = clientKey[i]! ^ signature[i]!
    this.#serverSignature = hmac(hmac(salted, 'Server Key'), authMessage)
    return `${withoutProof},p=${proof.toString('base64')}`
  }

  verify(serverFinal: string): void {
    const fields = parseFields(serverFinal)
    const error = fields.get('e')
    if (error) throw new Error(`SCRAM: ${error}`)
    const given = Buffer.from(fields.get('v') ?? '', 'base64')
    const expected = this.#serverSignature
    if (!expected || given.length !== expected.length || !timingSafeEqual(given, expected)) {
      throw new Error(
        'SCRAM: the server does not know the password, so it may not be the server it claims to be',
      )
    }
    this.#verified = true
  }
}

function parseFields(message: string): Map<string, string> {
  return new Map(message.split(',').map((part) => [part.slice(0, 1), part.slice(2)]))
}

function hmac(key: Buffer, text: string): Buffer {
  return createHmac('sha256', key).update(text).digest()
}

/** The answer to an md5 password request. Source: PostgreSQL docs, "Message Flow", AuthenticationMD5Password. */
export function md5Password(user: string, password: string, salt: Buffer): string {
  const inner = createHash('md5')
    .update(password + user)
    .digest('hex')
  return `md5${createHash('md5').update(inner).update(salt).digest('hex')}`
}
