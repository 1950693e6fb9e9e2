import { SternaError } from '../core/errors.ts'
import {
  BACKEND,
  cstringEnd,
  parseDataRow,
  parseRowDescription,
  parseServerMessage,
  rowCountOfTag,
  type Field,
  type ServerMessage,
} from '../pgwire/backend.ts'
import { writeQuery, writeTerminate } from '../pgwire/frontend.ts'
import { MessageWriter } from '../pgwire/message-writer.ts'
import { ServerError } from '../postgres/server-error.ts'
import type { WireSocket } from '../postgres/wire-socket.ts'

/** Type byte of CopyFail, with which a client refuses to send the data of a COPY FROM STDIN. */
const COPY_FAIL = 0x66

/** What one statement of a script gave. */
export interface StatementResult {
  /** The command tag, such as `INSERT 0 1`; empty for an empty statement. */
  readonly command: string
  readonly rowCount: number
  /** Null where the statement returns no rows at all. */
  readonly fields: readonly Field[] | null
  readonly rows: readonly (string | null)[][]
}

/** Receives what happens while a script runs, in order. */
export interface ScriptHandlers {
  readonly onResult: (result: StatementResult) => void
  readonly onNotice: (notice: ServerMessage) => void
  /** Data of a COPY TO STDOUT as it arrives. */
  readonly onCopyData: (bytes: Buffer) => void
}

/**
 * Runs a string of statements by the simple protocol. Unlike PgConnection.exec it keeps columns of the same name apart,
 * hands out what the statements before a failing one gave, and takes COPY TO STDOUT.
 * @returns the error that ended the script, or null
 * @throws CONNECTION_LOST
 */
export function runScript(
  wire: WireSocket,
  sql: string,
  handlers: ScriptHandlers,
): Promise<ServerError | null> {
  const writer = new MessageWriter(sql.length + 16)
  let fields: Field[] | null = null
  let rows: (string | null)[][] = []
  let failure: ServerError | null = null
  return new Promise((resolve, reject) => {
    wire.onClose = (error) => reject(failure ? lostBecause(wire, failure) : error)
    wire.onFrame = (type, buffer, start, end) => {
      switch (type) {
        case BACKEND.rowDescription:
          fields = parseRowDescription(buffer, start, end)
          return
        case BACKEND.dataRow:
          rows.push(parseDataRow(buffer, start, end))
          return
        case BACKEND.commandComplete:
        case BACKEND.emptyQueryResponse: {
          const empty = type === BACKEND.emptyQueryResponse
          const command = empty ? '' : buffer.toString('utf8', start, cstringEnd(buffer, start))
          handlers.onResult({ command, rowCount: rowCountOfTag(command), fields, rows })
          fields = null
          rows = []
          return
        }
        case BACKEND.copyData:
          return handlers.onCopyData(Buffer.from(buffer.subarray(start, end)))
        case BACKEND.copyInResponse:
          writer
            .begin(COPY_FAIL)
            .cstring('sterna sql has no data to send; use psql for COPY FROM STDIN')
            .end()
          wire.write(writer.take())
          return
        case BACKEND.notice:
          return handlers.onNotice(parseServerMessage(buffer, start, end))
        case BACKEND.error:
          failure = new ServerError(wire.address, parseServerMessage(buffer, start, end))
          return
        case BACKEND.readyForQuery:
          return resolve(failure)
        default:
      }
    }
    writeQuery(writer, sql)
    wire.write(writer.take())
  })
}

/** Ends the session in order. Never rejects. */
export async function endSession(wire: WireSocket): Promise<void> {
  const writer = new MessageWriter(16)
  writeTerminate(writer)
  await wire.end(writer.take())
}

/** The line and column (both from 1) of a position that the server gave, and that line's text. */
export function locate(sql: string, position: number): { line: number; column: number; text: string } {
  const before = Array.from(sql).slice(0, position - 1)
  const line = before.filter((character) => character === '\n').length + 1
  const column = before.length - before.lastIndexOf('\n')
  return { line, column, text: sql.split('\n')[line - 1] ?? '' }
}

function lostBecause(wire: WireSocket, failure: ServerError): SternaError {
  return new SternaError(
    'CONNECTION_LOST',
    { address: wire.address, reason: failure.fields.message },
    failure,
  )
}
