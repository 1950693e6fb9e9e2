import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { connect as connectTcp, isIP, type Socket } from 'node:net'
import { homedir } from 'node:os'
import { connect as connectTls, type ConnectionOptions, type TLSSocket } from 'node:tls'

import type { ErrorCode } from '../core/error-codes.ts'
import { messageOf, SternaError } from '../core/errors.ts'
import { BACKEND, cstringEnd, parseServerMessage, type ServerMessage } from '../pgwire/backend.ts'
import { FrameReader, MAX_BODY_BYTES, type FrameHandler } from '../pgwire/frame-reader.ts'
import {
  writePassword,
  writeSaslInitial,
  writeSaslResponse,
  writeSslRequest,
  writeStartup,
} from '../pgwire/frontend.ts'
import { MessageWriter } from '../pgwire/message-writer.ts'
import { md5Password, SCRAM_SHA_256, ScramClient } from '../pgwire/scram.ts'
import { addressOf, type ConnectTarget } from './dsn.ts'
import { passwordFromFile, type PassFileAnswer } from './pass-file.ts'
import { ServerError } from './server-error.ts'

const MAX_HANDSHAKE_BODY_BYTES = 64 * 1024
const KEEPALIVE_DELAY_MS = 10_000
/** After that long an orderly close becomes a disorderly one. */
const CLOSE_TIMEOUT_MS = 2_000
/** The server's one-byte answers to the TLS request. */
const TLS_ACCEPTED = 0x53
const TLS_DECLINED = 0x4e

/** Settings of every session of ours: values have one text form whatever the server's configuration. */
const SESSION_SETTINGS = {
  client_encoding: 'UTF8',
  DateStyle: 'ISO, YMD',
  IntervalStyle: 'postgres',
  extra_float_digits: '3',
} as const

export interface WireOptions {
  readonly applicationName: string
  /** `replication=database` for a walsender. */
  readonly replication?: boolean
  /** More start-up parameters, such as session settings. */
  readonly parameters?: Readonly<Record<string, string>>
  readonly signal?: AbortSignal
}

/**
 * An authenticated connection at the level of protocol messages, ready for queries. Whoever owns it sets `onFrame` and
 * `onClose`; `onClose` is called exactly once, with the reason, however the connection ends.
 */
export class WireSocket {
  readonly address: string
  readonly target: ConnectTarget
  readonly parameters = new Map<string, string>()
  backendPid = 0
  cancelKey: Buffer = Buffer.alloc(0)
  onFrame: FrameHandler = () => {}
  onClose: (error: SternaError) => void = () => {}
  /** Every message in the bytes received so far has been handed to `onFrame`. */
  onChunkEnd: () => void = () => {}
  readonly #socket: Socket
  readonly #reader: FrameReader
  #closed: SternaError | undefined
  /** Ended by fail(): what is still in the last chunk is of no interest any more. */
  #failed = false

  private constructor(target: ConnectTarget, socket: Socket, reader: FrameReader) {
    this.address = addressOf(target)
    this.target = target
    this.#socket = socket
    this.#reader = reader
  }

  /**
   * Connects, negotiates TLS as `sslMode` asks and logs in.
   * @throws SERVER_UNREACHABLE, SERVER_NOT_READY, TLS_FAILED, AUTH_FAILED, DATABASE_MISSING, CONNECTIONS_EXHAUSTED,
   *   SLOTS_EXHAUSTED, PROTOCOL_VIOLATION, or ServerError
   */
  static async open(target: ConnectTarget, options: WireOptions): Promise<WireSocket> {
    const { sslMode, passFile } = target
    const fromFile =
      target.password === undefined && passFile !== undefined ? await passwordFromFile(passFile, target) : {}
    const first: Attempt = { tls: sslMode !== 'disable' && sslMode !== 'allow', fromFile }
    try {
      return await openOnce(target, options, first)
    } catch (error) {
      if ((sslMode !== 'prefer' && sslMode !== 'allow') || !mayFallBack(error)) throw error
      const second: Attempt = { tls: sslMode === 'allow', fromFile }
      // The server had no TLS to offer: the second attempt would be the first again.
      if (first.tls === second.tls) throw error
      try {
        return await openOnce(target, options, second)
      } catch (secondError) {
        throw isCode(secondError, 'TLS_FAILED') ? error : secondError
      }
    }
  }

  static adopt(target: ConnectTarget, socket: Socket): WireSocket {
    const address = addressOf(target)
    const reader = new FrameReader(address, () => {})
    const wire = new WireSocket(target, socket, reader)
    reader.setHandler((type, buffer, start, end) => {
      if (!wire.#failed) wire.onFrame(type, buffer, start, end)
    })
    socket.on('data', (chunk: Buffer) => {
      try {
        reader.push(chunk)
        if (!wire.#failed) wire.onChunkEnd()
      } catch (error) {
        if (error instanceof SternaError) wire.fail(error)
        else if (error instanceof RangeError) {
          wire.fail(
            new SternaError(
              'PROTOCOL_VIOLATION',
              { address, reason: 'a message is shorter than its fields' },
              error,
            ),
          )
        } else throw error
      }
    })
    socket.on('error', (error) => wire.fail(lost(address, messageOf(error), error)))
    socket.on('close', () => wire.fail(lost(address, 'the server closed it')))
    // It was paused when the server declined TLS.
    socket.resume()
    return wire
  }

  get closed(): boolean {
    return this.#closed !== undefined
  }

  /** Bytes handed to write() that the kernel has not taken yet. */
  get unsentBytes(): number {
    return this.#socket.writableLength
  }

  /** Bytes received so far. */
  get bytesRead(): number {
    return this.#socket.bytesRead
  }

  /** See FrameReader. */
  set checkLong(check: (type: number, head: Buffer) => void) {
    this.#reader.checkLong = check
  }

  set maxBodyBytes(bytes: number) {
    this.#reader.maxBodyBytes = bytes
  }

  /** Sends bytes; false when the socket's buffer is full (wait for `onDrain`). */
  write(bytes: Buffer): boolean {
    if (this.#closed) return true
    return this.#socket.write(bytes)
  }

  onceDrained(call: () => void): void {
    this.#socket.once('drain', call)
  }

  /**
   * Stops reading: the kernel's buffers fill and the sender is slowed down. Not while it closes: a socket that is paused
   * then does not see the other end close, and keeps no process alive that waits for it.
   */
  pause(): void {
    if (!this.#closed) this.#socket.pause()
  }

  resume(): void {
    this.#socket.resume()
  }

  /** Ends the connection now and reports `error` as the reason. */
  fail(error: SternaError): void {
    if (this.#closed) return
    this.#closed = error
    this.#failed = true
    this.#socket.destroy()
    this.onClose(error)
  }

  /** Sends the last bytes and closes in order. */
  end(bytes: Buffer): Promise<void> {
    if (this.#closed) return Promise.resolve()
    this.#closed = lost(this.address, 'closed by us')
    return new Promise((resolve) => {
      const timer = setTimeout(() => this.#socket.destroy(), CLOSE_TIMEOUT_MS)
      this.#socket.once('close', () => {
        clearTimeout(timer)
        resolve()
      })
      this.#socket.end(bytes)
      this.#socket.resume()
    })
  }
}

function lost(address: string, reason: string, cause?: unknown): SternaError {
  return new SternaError('CONNECTION_LOST', { address, reason }, cause)
}

/** `tls`: whether to ask for TLS; afterwards, whether there was any. */
interface Attempt {
  tls: boolean
  readonly fromFile: PassFileAnswer
}

/**
 * Whether the other transport may do better: TLS did not come about, or pg_hba.conf has no line for this one. A wrong
 * password is not tried again, least of all unencrypted.
 */
function mayFallBack(error: unknown): boolean {
  return isCode(error, 'TLS_FAILED') || (isCode(error, 'AUTH_FAILED') && error.facts['sqlstate'] === '28000')
}

function isCode(error: unknown, code: ErrorCode): error is SternaError {
  return error instanceof SternaError && error.code === code
}

async function openOnce(target: ConnectTarget, options: WireOptions, attempt: Attempt): Promise<WireSocket> {
  const address = addressOf(target)
  const timeout = AbortSignal.timeout(target.connectTimeoutMs)
  const signal = options.signal ? AbortSignal.any([timeout, options.signal]) : timeout
  let socket: Socket | undefined
  const onAbort = (): void => void socket?.destroy(tooLate(target, timeout))
  signal.addEventListener('abort', onAbort)
  try {
    attempt.tls &&= !target.host.startsWith('/')
    socket = connectTo(target)
    if (signal.aborted) onAbort()
    await connected(socket)
    if (attempt.tls) {
      const secure = await startTls(socket, target)
      attempt.tls = secure !== socket
      socket = secure
    }
    const wire = WireSocket.adopt(target, socket)
    await logIn(wire, target, options, attempt.fromFile)
    if (signal.aborted) throw tooLate(target, timeout)
    return wire
  } catch (error) {
    socket?.destroy()
    // Also while TLS is being negotiated: then the reason is not TLS.
    if (signal.aborted) throw unreachable(address, tooLate(target, timeout))
    throw error instanceof SternaError ? error : unreachable(address, error)
  } finally {
    signal.removeEventListener('abort', onAbort)
  }
}

function tooLate(target: ConnectTarget, timeout: AbortSignal): Error {
  return new Error(timeout.aborted ? `no answer within ${target.connectTimeoutMs / 1000} s` : 'given up')
}

function unreachable(address: string, error: unknown): SternaError {
  return new SternaError('SERVER_UNREACHABLE', { address, reason: messageOf(error) }, error)
}

function connectTo(target: ConnectTarget): Socket {
  return target.host.startsWith('/')
    ? connectTcp({ path: `${target.host}/.s.PGSQL.${target.port}` })
    : connectTcp({ host: target.hostAddr ?? target.host, port: target.port, noDelay: true })
}

async function connected(socket: Socket): Promise<void> {
  await once(socket, 'connect')
  socket.setKeepAlive(true, KEEPALIVE_DELAY_MS)
}

/** Asks for TLS. Returns the socket itself when the server declines and sslmode allows that. */
async function startTls(socket: Socket, target: ConnectTarget): Promise<Socket> {
  const address = addressOf(target)
  const answer = await firstBytes(socket)
  const violation = (reason: string): SternaError =>
    new SternaError('PROTOCOL_VIOLATION', { address, reason })
  // More than one byte: somebody in between may have put plain text before the encrypted stream.
  if (answer.length !== 1) throw violation('the answer to the TLS request is not one byte')
  if (answer[0] === TLS_DECLINED) {
    if (target.sslMode === 'prefer') return socket
    const reason = `the server does not offer TLS, and sslmode is ${target.sslMode}`
    throw new SternaError('TLS_FAILED', { address, reason })
  }
  if (answer[0] !== TLS_ACCEPTED) throw violation('the answer to the TLS request is neither S nor N')
  try {
    const secure = connectTls({ ...tlsOptions(target), socket })
    await secured(secure)
    return secure
  } catch (error) {
    socket.destroy()
    throw new SternaError('TLS_FAILED', { address, reason: messageOf(error) }, error)
  }
}

/** Sends the TLS request and pauses at the first answer, before the event loop can deliver more. */
function firstBytes(socket: Socket): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const onClose = (): void => reject(new Error('the server closed the connection at the TLS request'))
    socket.once('error', reject)
    socket.once('close', onClose)
    socket.once('data', (bytes: Buffer) => {
      socket.pause()
      socket.off('error', reject)
      socket.off('close', onClose)
      resolve(bytes)
    })
    const writer = new MessageWriter(16)
    writeSslRequest(writer)
    socket.write(writer.take())
  })
}

function secured(secure: TLSSocket): Promise<void> {
  return new Promise((resolve, reject) => {
    const onClose = (): void => reject(new Error('the server closed the connection'))
    secure.once('error', reject)
    secure.once('close', onClose)
    secure.once('secureConnect', () => {
      secure.off('error', reject)
      secure.off('close', onClose)
      resolve()
    })
  })
}

/** What libpq's sslmode means for the certificate check. Source: PostgreSQL docs, "SSL Support", table of sslmode. */
function tlsOptions(target: ConnectTarget): ConnectionOptions {
  const rootCert = target.sslRootCert ?? defaultRootCert()
  const verify =
    target.sslMode.startsWith('verify') || (target.sslMode === 'require' && rootCert !== undefined)
  const ca = verify && rootCert !== undefined && rootCert !== 'system' ? readFileSync(rootCert) : undefined
  if (verify && !ca && rootCert !== 'system')
    throw new Error('no root certificate: give sslrootcert=FILE or sslrootcert=system')
  return {
    rejectUnauthorized: verify,
    minVersion: 'TLSv1.2',
    ...(isIP(target.host) ? { host: target.host } : { servername: target.host }),
    ...(ca ? { ca } : {}),
    ...(target.sslCert ? { cert: readFileSync(target.sslCert) } : {}),
    ...(target.sslKey ? { key: readFileSync(target.sslKey) } : {}),
    ...(target.sslMode === 'verify-full' ? {} : { checkServerIdentity: () => undefined }),
  }
}

function defaultRootCert(): string | undefined {
  const path = `${homedir()}/.postgresql/root.crt`
  try {
    readFileSync(path)
    return path
  } catch {
    return undefined
  }
}

/** Runs start-up and authentication until the first ReadyForQuery. */
function logIn(
  wire: WireSocket,
  target: ConnectTarget,
  options: WireOptions,
  fromFile: PassFileAnswer,
): Promise<void> {
  const writer = new MessageWriter(1024)
  writeStartup(writer, {
    user: target.user,
    database: target.database,
    application_name: target.applicationName ?? options.applicationName,
    ...(options.replication ? { replication: 'database' } : {}),
    ...(target.options ? { options: target.options } : {}),
    ...SESSION_SETTINGS,
    ...options.parameters,
  })
  const violation = (reason: string): SternaError =>
    new SternaError('PROTOCOL_VIOLATION', { address: wire.address, reason })
  wire.maxBodyBytes = MAX_HANDSHAKE_BODY_BYTES
  return new Promise((resolve, reject) => {
    let scram: ScramClient | undefined
    const fail = (error: SternaError): void => {
      reject(error)
      wire.fail(error)
    }
    wire.onClose = (error) =>
      reject(
        error.code === 'CONNECTION_LOST'
          ? unreachable(wire.address, new Error(String(error.facts['reason'])))
          : error,
      )
    const authenticate = (buffer: Buffer, start: number, end: number): void => {
      const kind = buffer.readInt32BE(start)
      if (kind === 0) {
        if (scram && !scram.verified)
          fail(authFailed(wire, target, 'it did not prove that it knows the password'))
        return
      }
      const password = target.password ?? fromFile.password
      if (password === undefined && kind !== 12) {
        const why = fromFile.ignored ?? 'the connection string has none'
        return fail(authFailed(wire, target, `it asks for a password, and ${why}`))
      }
      if (kind === 3) writePassword(writer, password!)
      else if (kind === 5)
        writePassword(writer, md5Password(target.user, password!, buffer.subarray(start + 4, start + 8)))
      else if (kind === 10) {
        const offered = buffer.toString('utf8', start + 4, end).split('\0')
        if (!offered.includes(SCRAM_SHA_256))
          return fail(
            violation(`it offers no SASL mechanism that we know (${offered.filter(Boolean).join(', ')})`),
          )
        scram = new ScramClient(password!)
        writeSaslInitial(writer, SCRAM_SHA_256, scram.first)
      } else if (kind === 11 && scram) {
        try {
          writeSaslResponse(writer, scram.final(buffer.toString('utf8', start + 4, end)))
        } catch (error) {
          return fail(authFailed(wire, target, messageOf(error)))
        }
      } else if (kind === 12 && scram) {
        try {
          scram.verify(buffer.toString('utf8', start + 4, end))
        } catch (error) {
          return fail(authFailed(wire, target, messageOf(error)))
        }
        return
      } else
        return fail(
          authFailed(wire, target, `it asks for authentication method ${kind}, which is not supported`),
        )
      wire.write(writer.take())
    }
    wire.onFrame = (type, buffer, start, end) => {
      switch (type) {
        case BACKEND.authentication:
          return authenticate(buffer, start, end)
        case BACKEND.parameterStatus: {
          const nameEnd = cstringEnd(buffer, start)
          wire.parameters.set(
            buffer.toString('utf8', start, nameEnd),
            buffer.toString('utf8', nameEnd + 1, end - 1),
          )
          return
        }
        case BACKEND.backendKeyData:
          wire.backendPid = buffer.readInt32BE(start)
          wire.cancelKey = Buffer.from(buffer.subarray(start + 4, end))
          return
        case BACKEND.readyForQuery:
          wire.maxBodyBytes = MAX_BODY_BYTES
          wire.onFrame = () => {}
          wire.onClose = () => {}
          return resolve()
        case BACKEND.error:
          return fail(
            logInError(wire, target, parseServerMessage(buffer, start, end), options.replication ?? false),
          )
        case BACKEND.notice:
        case BACKEND.negotiateProtocolVersion:
          return
        default:
          return fail(violation(`message type 0x${type.toString(16)} during log-in`))
      }
    }
    wire.write(writer.take())
  })
}

function authFailed(wire: WireSocket, target: ConnectTarget, reason: string, sqlstate?: string): SternaError {
  return new SternaError('AUTH_FAILED', { address: wire.address, user: target.user, reason, sqlstate })
}

function logInError(
  wire: WireSocket,
  target: ConnectTarget,
  fields: ServerMessage,
  replication: boolean,
): SternaError {
  if (fields.sqlstate.startsWith('28')) return authFailed(wire, target, fields.message, fields.sqlstate)
  if (fields.sqlstate === '3D000')
    return new SternaError('DATABASE_MISSING', { address: wire.address, database: target.database })
  if (fields.sqlstate === '57P03') {
    const facts = { address: wire.address, reason: fields.message }
    return new SternaError('SERVER_NOT_READY', facts, new ServerError(wire.address, fields))
  }
  if (fields.sqlstate === '53300') {
    const facts = { address: wire.address, reason: fields.message }
    const code = replication ? 'SLOTS_EXHAUSTED' : 'CONNECTIONS_EXHAUSTED'
    return new SternaError(code, facts, new ServerError(wire.address, fields))
  }
  return new ServerError(wire.address, fields)
}
