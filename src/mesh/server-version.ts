import { SternaError } from '../core/errors.ts'
import type { PgConnection } from '../postgres/connection.ts'
import { OLDEST_MAJOR } from './doctor/server-checks.ts'

/** @throws SERVER_TOO_OLD */
export function requireVersion(conn: PgConnection): void {
  if (conn.majorVersion >= OLDEST_MAJOR) return
  const version = conn.parameter('server_version') ?? 'of unknown version'
  throw new SternaError('SERVER_TOO_OLD', { address: conn.address, version })
}
