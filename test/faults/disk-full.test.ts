import { execFileSync } from 'node:child_process'
import { chmodSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'

import type { MeshTestNode, TestMesh } from '../harness/mesh.ts'
import { waitUntil } from '../harness/wait.ts'
import {
  becomes,
  downWith,
  expectClean,
  expectEqual,
  only,
  replicates,
  shown,
  startFaultMesh,
} from './rig.ts'

const SIZE_MB = 300
const ROWS = 60_000

/** Mounting a small file system takes root, and a kernel that allows it. */
function mountSmall(): string | undefined {
  const directory = mkdtempSync(join(tmpdir(), 'sterna-disk-'))
  chmodSync(directory, 0o711)
  try {
    execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${SIZE_MB}m,mode=711`, 'tmpfs', directory], {
      stdio: 'ignore',
    })
    return directory
  } catch {
    rmSync(directory, { recursive: true })
    return undefined
  }
}

const disk = mountSmall()
if (disk === undefined)
  console.warn('SKIPPED: a full disk is not tested, since this user cannot mount a tmpfs')

/** Takes all room but `leftMb` with a file. */
function fill(leftMb: number): () => void {
  const ballast = join(disk!, 'ballast')
  const free = Number(
    execFileSync('df', ['--output=avail', '-BM', disk!], { encoding: 'utf8' })
      .split('\n')[1]!
      .replace('M', ''),
  )
  writeFileSync(ballast, Buffer.alloc(Math.max(0, free - leftMb) * 1024 * 1024))
  return () => rmSync(ballast, { force: true })
}

describe.skipIf(disk === undefined)('the disk of the subscriber is full', () => {
  let mesh: TestMesh
  let n1: MeshTestNode
  let n2: MeshTestNode
  let n3: MeshTestNode

  beforeAll(async () => {
    mesh = await startFaultMesh({
      count: 3,
      schema: 'create table t (id int primary key, v text); create table ok (id int primary key, v text)',
      settings: { wal_recycle: 'off', min_wal_size: '32MB', max_wal_size: '64MB' },
    })
    ;[n1, n2, n3] = mesh.nodes as [MeshTestNode, MeshTestNode, MeshTestNode]
  })
  afterAll(async () => {
    try {
      await expectClean(mesh)
    } finally {
      await mesh.stop()
      execFileSync('umount', ['-l', disk!])
      rmSync(disk!, { recursive: true, force: true })
    }
  })

  test('its tablespace: the subscription is down with the reason, others go on, and with room it heals', async () => {
    const place = join(disk!, 'space')
    execFileSync('mkdir', [place])
    const { uid, gid } = statSync(n1.server.dataDir)
    execFileSync('chown', [`${uid}:${gid}`, place])
    await n1.exec(`set sterna.ddl_replication = off`)
    await n1.exec(`create tablespace small location '${place}'`)
    await n1.exec('alter table t set tablespace small')
    await n1.exec('reset sterna.ddl_replication')
    const free = fill(3)
    onTestFinished(free)
    await n2.query(`insert into t select g, repeat('x', 100) || g from generate_series(1, ${ROWS}) g`)
    const { message, hint } = await downWith(n1, 'sub_n1_n2', 'SERVER_OUT_OF_RESOURCES')
    expect(message).toMatch(/n1.*insert on public\.t.*53100/)
    expect(hint).toContain('disk of n1')
    await n3.query(`insert into ok values (1, 'of n3')`)
    await becomes(n1, 'select count(*)::int from ok', 1, 5000)
    expect((await shown(n1, 'sub_n1_n3')).last_error).toBeNull()
    expect(await only(n1, 'select count(*)::int from t')).toBe(0)
    free()
    await becomes(n1, `select exists (select from t where id = 1)`, true, 60_000)
    expect(await only(n1, 'select count(*)::int from t')).toBe(ROWS)
    await expectEqual(mesh, 't')
    await replicates(n1, 'sub_n1_n2')
    await n1.exec(`set sterna.ddl_replication = off`)
    await n1.exec('alter table t set tablespace pg_default')
    await n1.exec('drop tablespace small')
    await n1.exec('reset sterna.ddl_replication')
  })

  test('its WAL: the server stops itself; when it is started with room, nothing was lost', async () => {
    await n1.server.stop()
    const wal = join(disk!, 'wal')
    execFileSync('cp', ['-a', join(n1.server.dataDir, 'pg_wal'), wal])
    execFileSync('rm', ['-rf', join(n1.server.dataDir, 'pg_wal')])
    execFileSync('ln', ['-s', wal, join(n1.server.dataDir, 'pg_wal')])
    await n1.server.start()
    await replicates(n1, 'sub_n1_n2')
    const free = fill(20)
    onTestFinished(free)
    for (let i = 1; i <= 4; i++)
      await n2.query(
        `insert into t select g, repeat('y', 200) || g from generate_series(${i * 1_000_000}, ${i * 1_000_000 + 40_000}) g`,
      )
    // PostgreSQL panics when it cannot write WAL; its processes end.
    await waitUntil(
      'the agent of n1 has lost its server',
      () => /own server not usable/.test(n1.agent.log),
      60_000,
    )
    expect(readdirSync(disk!)).toContain('ballast')
    free()
    await n1.server.stop()
    await n1.server.start()
    await becomes(n1, 'select exists (select from t where id = 4040000)', true, 60_000)
    await replicates(n1, 'sub_n1_n2')
    await expectEqual(mesh, 't')
  }, 120_000)
})
