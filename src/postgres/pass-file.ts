import { readFile, stat } from 'node:fs/promises'

import type { ConnectTarget } from './dsn.ts'

/** What a line of a password file is for. */
export type PassFileKey = Pick<ConnectTarget, 'host' | 'port' | 'user' | 'database'>

/** What a password file says. `ignored`: why it was not read although it is there. */
export interface PassFileAnswer {
  readonly password?: string
  readonly ignored?: string
}

/**
 * Looks up a password in libpq's password file (`~/.pgpass`). A file that others may read is ignored, as libpq does.
 * Source: PostgreSQL docs, "The Password File". Never rejects.
 */
export async function passwordFromFile(path: string, key: PassFileKey): Promise<PassFileAnswer> {
  try {
    const facts = await stat(path)
    if (!facts.isFile()) return { ignored: `password file ${path} is ignored: it is not a plain file` }
    if ((facts.mode & 0o077) !== 0)
      return { ignored: `password file ${path} is ignored: others may read it (chmod 0600)` }
    const password = findPassword(await readFile(path, 'utf8'), key)
    return password === undefined ? {} : { password }
  } catch {
    return {}
  }
}

/** The password on the first line `host:port:database:user:password` that fits; `*` fits all, `\` escapes. */
export function findPassword(text: string, key: PassFileKey): string | undefined {
  const wanted = [key.host, String(key.port), key.database, key.user]
  for (const line of text.split(/\r?\n/)) {
    if (line.startsWith('#')) continue
    const fields = line.match(/(?:^|:)(?:[^:\\]|\\.?)*/g) ?? []
    const values = fields.map((field, i) => (i === 0 ? field : field.slice(1)))
    if (values.length < 5) continue
    const fits = wanted.every((value, i) => values[i] === '*' || unescape(values[i]!) === value)
    // Further colons belong to the password: it is the last field.
    if (fits) return unescape(values.slice(4).join(':')) || undefined
  }
  return undefined
}

function unescape(field: string): string {
  return field.replaceAll(/\\(.)/g, '$1')
}
