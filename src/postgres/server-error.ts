import { SternaError } from '../core/errors.ts'
import type { ServerMessage } from '../pgwire/backend.ts'

/** An ErrorResponse of a server. `sqlstate` classifies it; `fields` has the rest, never row values beyond what PostgreSQL put in. */
export class ServerError extends SternaError {
  override name = 'ServerError'
  readonly fields: ServerMessage

  constructor(address: string, fields: ServerMessage) {
    super('STATEMENT_FAILED', { address, sqlstate: fields.sqlstate, reason: fields.message })
    this.fields = fields
  }

  get sqlstate(): string {
    return this.fields.sqlstate
  }

  override get retry(): boolean {
    return isTransient(this.fields.sqlstate)
  }

  override get hint(): string {
    return this.fields.hint ?? super.hint
  }
}

/**
 * Whether a failure with this SQLSTATE may pass by itself: connection (08), rollback of a deadlock or serialisation
 * failure (40), resources (53), lock not available, shutdown and the like (57P0x).
 */
export function isTransient(sqlstate: string): boolean {
  return /^(08|40|53)/.test(sqlstate) || /^(55P03|55006|57P0\d|57014)$/.test(sqlstate)
}

/** The SQLSTATE of any thrown value; undefined where it is not a server's error. */
export function sqlstateOf(error: unknown): string | undefined {
  return error instanceof ServerError ? error.sqlstate : undefined
}
