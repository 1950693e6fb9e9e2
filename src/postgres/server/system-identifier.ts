import { readdir, readFile, open } from 'node:fs/promises'
import { join } from 'node:path'

/** Where the system identifier stands in the first page of a WAL segment. Source: xlog_internal.h, XLogLongPageHeaderData. */
const WAL_SYSTEM_IDENTIFIER_OFFSET = 24
/** Set in the first page of each segment: XLP_LONG_HEADER. */
const WAL_LONG_HEADER = 0x0002
/** ControlFileData ends with its CRC within this many bytes. Source: pg_control.h, PG_CONTROL_MAX_SAFE_SIZE. */
const CONTROL_MAX_SAFE_SIZE = 512

/**
 * Gives a copied, never started data directory a system identifier of its own, as if initdb had made it: in the control
 * file, and in the first page of each WAL segment, which recovery compares. False when the control file is not
 * understood, and then nothing was changed.
 *
 * Nodes that were copied from one template would otherwise be taken for physical copies of each other.
 */
export async function assignSystemIdentifier(dataDir: string, identifier: bigint): Promise<boolean> {
  const controlPath = join(dataDir, 'global', 'pg_control')
  const control = await readFile(controlPath)
  const changed = withSystemIdentifier(control, identifier)
  if (!changed) return false
  const walDir = join(dataDir, 'pg_wal')
  for (const name of await readdir(walDir)) {
    if (/^[0-9A-F]{24}$/.test(name))
      await patchSegment(join(walDir, name), control.subarray(0, 8), identifier)
  }
  await overwrite(controlPath, changed, 0)
  return true
}

/**
 * The control file with another system identifier and the CRC that goes with it. The CRC's place differs between
 * versions; it is where the value equals the CRC-32C of all before it. Undefined when there is no such place.
 */
export function withSystemIdentifier(control: Buffer, identifier: bigint): Buffer | undefined {
  for (let end = 64; end <= Math.min(CONTROL_MAX_SAFE_SIZE, control.length) - 4; end += 4) {
    if (control.readUInt32LE(end) !== crc32c(control.subarray(0, end))) continue
    const changed = Buffer.from(control)
    changed.writeBigUInt64LE(identifier, 0)
    changed.writeUInt32LE(crc32c(changed.subarray(0, end)), end)
    return changed
  }
  return undefined
}

/** A new identifier in initdb's way: seconds, microseconds, and 12 bits that tell apart what was made at once. */
export function newSystemIdentifier(unixMs: number, distinct: number): bigint {
  const seconds = BigInt(Math.floor(unixMs / 1000))
  const micros = BigInt(Math.floor((unixMs % 1000) * 1000))
  return (seconds << 32n) | (micros << 12n) | BigInt(distinct & 0xfff)
}

async function patchSegment(path: string, oldIdentifier: Buffer, identifier: bigint): Promise<void> {
  const file = await open(path, 'r+')
  try {
    const header = Buffer.alloc(40)
    await file.read(header, 0, header.length, 0)
    const hasIdentifier =
      (header.readUInt16LE(2) & WAL_LONG_HEADER) !== 0 &&
      header.subarray(WAL_SYSTEM_IDENTIFIER_OFFSET, WAL_SYSTEM_IDENTIFIER_OFFSET + 8).equals(oldIdentifier)
    if (!hasIdentifier) return
    const bytes = Buffer.alloc(8)
    bytes.writeBigUInt64LE(identifier)
    await file.write(bytes, 0, 8, WAL_SYSTEM_IDENTIFIER_OFFSET)
    await file.sync()
  } finally {
    await file.close()
  }
}

async function overwrite(path: string, bytes: Buffer, position: number): Promise<void> {
  const file = await open(path, 'r+')
  try {
    await file.write(bytes, 0, bytes.length, position)
    await file.sync()
  } finally {
    await file.close()
  }
}

/** CRC-32C (Castagnoli), as PostgreSQL uses it for the control file and WAL. */
export function crc32c(bytes: Uint8Array): number {
  let crc = 0xffffffff
  for (const byte of bytes) {
    crc ^= byte
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0x82f63b78 : 0)
  }
  return (crc ^ 0xffffffff) >>> 0
}
