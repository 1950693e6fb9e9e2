import { createHash } from 'node:crypto'
import { chmod, mkdir, mkdtemp, rename, rm, stat } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { PgBinaries } from '../../src/postgres/server/binaries.ts'
import { createDataDir, type DataDirOptions, hasDataDir } from '../../src/postgres/server/data-dir.ts'
import type { OsUser } from '../../src/postgres/server/os-user.ts'

/** Change it when createDataDir makes something else than before. */
const TEMPLATE_FORMAT = 1

/** Every server of the tests has this login and this database. */
export const TEST_LOGIN = { role: 'sterna', password: 'sterna', database: 'app' } as const

/**
 * A data directory made by initdb, to be copied: made once per set of programs and machine, and shared by all test
 * processes; it must not be started.
 */
export async function templateDataDir(binaries: PgBinaries, user: OsUser | null): Promise<string> {
  const uid = process.getuid?.() ?? 0
  const root = join(tmpdir(), `sterna-test-templates-${uid}`)
  await mkdir(root, { recursive: true })
  if ((await stat(root)).uid !== uid) throw new Error(`${root} belongs to somebody else`)
  await chmod(root, 0o711)
  const key = JSON.stringify([TEMPLATE_FORMAT, binaries.binDir, binaries.version, user?.name, TEST_LOGIN])
  const template = join(
    root,
    `${binaries.version}-${createHash('sha256').update(key).digest('hex').slice(0, 12)}`,
  )
  if (await hasDataDir(template)) return template
  const workplace = await mkdtemp(join(root, 'making-'))
  try {
    await chmod(workplace, 0o711)
    const options: DataDirOptions = { binaries, user, ...TEST_LOGIN }
    await createDataDir(join(workplace, 'data'), options)
    await rename(join(workplace, 'data'), template)
  } catch (error) {
    // Another process was faster.
    if (!(await hasDataDir(template))) throw error
  } finally {
    await rm(workplace, { recursive: true, force: true })
  }
  return template
}
