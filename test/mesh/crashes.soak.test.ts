import { afterAll, beforeAll, describe, test } from 'vitest'

import { surviveCrashes } from '../harness/crashes.ts'
import { testLayout } from '../harness/layout.ts'
import { startMesh, type TestMesh } from '../harness/mesh.ts'
import { TPCB_SCHEMA } from '../harness/tpcb.ts'

const KILLS = Number(process.env['STERNA_TEST_KILLS'] ?? 50)

const layout = await testLayout()

describe.skipIf(layout.missing !== null)(`kill -9 for long, ${layout.name}`, () => {
  let mesh: TestMesh

  beforeAll(async () => {
    mesh = await startMesh({ count: layout.versions.length, version: layout.versions, schema: TPCB_SCHEMA })
  })
  afterAll(() => mesh?.stop())

  test(`agents and servers are killed ${KILLS} times under load: nothing is lost, nothing doubled`, async () => {
    const seed = Number(process.env['STERNA_TEST_SEED'] ?? Date.now() % 1_000_000)
    await surviveCrashes(mesh, { kills: KILLS, seed, transactionsBetween: 200 })
  })
})
