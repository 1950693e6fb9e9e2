import type { MessageWriter } from './message-writer.ts'

/** Type bytes of the messages that a client sends. */
export const FRONTEND = {
  bind: 0x42,
  close: 0x43,
  copyData: 0x64,
  copyDone: 0x63,
  describe: 0x44,
  execute: 0x45,
  flush: 0x48,
  parse: 0x50,
  password: 0x70,
  query: 0x51,
  sync: 0x53,
  terminate: 0x58,
} as const

const PROTOCOL_3_0 = 196_608
const SSL_REQUEST = 80_877_103
const CANCEL_REQUEST = 80_877_102

/** Asks for TLS; the server answers with one byte, `S` or `N`. */
export function writeSslRequest(w: MessageWriter): void {
  w.begin(0).int32(SSL_REQUEST).end()
}

export function writeCancelRequest(w: MessageWriter, pid: number, key: Buffer): void {
  w.begin(0).int32(CANCEL_REQUEST).int32(pid).bytes(key).end()
}

export function writeStartup(w: MessageWriter, params: Readonly<Record<string, string>>): void {
  w.begin(0).int32(PROTOCOL_3_0)
  for (const [name, value] of Object.entries(params)) w.cstring(name).cstring(value)
  w.byte(0).end()
}

export function writePassword(w: MessageWriter, text: string): void {
  w.begin(FRONTEND.password).cstring(text).end()
}

export function writeSaslInitial(w: MessageWriter, mechanism: string, response: string): void {
  w.begin(FRONTEND.password).cstring(mechanism).textValue(response).end()
}

export function writeSaslResponse(w: MessageWriter, response: string): void {
  w.begin(FRONTEND.password).bytes(Buffer.from(response)).end()
}

export function writeQuery(w: MessageWriter, sql: string): void {
  w.begin(FRONTEND.query).cstring(sql).end()
}

/** `paramTypes`: type OIDs, 0 or missing where the server infers. */
export function writeParse(
  w: MessageWriter,
  name: string,
  sql: string,
  paramTypes: readonly number[] = [],
): void {
  w.begin(FRONTEND.parse).cstring(name).cstring(sql).int16(paramTypes.length)
  for (const oid of paramTypes) w.int32(oid)
  w.end()
}

/** Binds text parameters to the unnamed portal; results come as text. */
export function writeBindText(w: MessageWriter, statement: string, params: readonly (string | null)[]): void {
  w.begin(FRONTEND.bind).cstring('').cstring(statement).int16(0).int16(params.length)
  for (const value of params) w.textValue(value)
  w.int16(0).end()
}

export function writeDescribeStatement(w: MessageWriter, name: string): void {
  w.begin(FRONTEND.describe).byte(0x53).cstring(name).end()
}

export function writeDescribePortal(w: MessageWriter): void {
  w.begin(FRONTEND.describe).byte(0x50).cstring('').end()
}

/** Runs the unnamed portal to its end. */
export function writeExecute(w: MessageWriter): void {
  w.begin(FRONTEND.execute).cstring('').int32(0).end()
}

export function writeCloseStatement(w: MessageWriter, name: string): void {
  w.begin(FRONTEND.close).byte(0x53).cstring(name).end()
}

export function writeSync(w: MessageWriter): void {
  w.begin(FRONTEND.sync).end()
}

export function writeFlush(w: MessageWriter): void {
  w.begin(FRONTEND.flush).end()
}

export function writeTerminate(w: MessageWriter): void {
  w.begin(FRONTEND.terminate).end()
}
