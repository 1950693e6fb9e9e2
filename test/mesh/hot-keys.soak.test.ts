import { afterAll, beforeAll, describe, test } from 'vitest'

import { judgeHotKeys } from '../harness/hot-keys-judge.ts'
import { HOT_SCHEMA, runHotKeys } from '../harness/hot-keys.ts'
import { ACCOUNT_SQL, addAndSubtract } from '../harness/increments.ts'
import { testLayout } from '../harness/layout.ts'
import { define, startStory, type Story } from '../harness/story.ts'

const MINUTES = Number(process.env['STERNA_TEST_MINUTES'] ?? 5)
const ROUND_MS = 8000
const SECONDS = 60

const layout = await testLayout()

describe.skipIf(layout.missing !== null)(`few keys that all nodes write for long, ${layout.name}`, () => {
  let story: Story

  beforeAll(async () => {
    story = await startStory({
      count: layout.versions.length,
      version: layout.versions,
      schema: `${HOT_SCHEMA}
        create table account (id int primary key, balance bigint not null, amount numeric(20, 3) not null, paid money not null, note text);
        insert into account values (1, 0, 0, 0, '');`,
    })
  })
  afterAll(() => story?.stop())

  test(`${MINUTES} minutes while links fail: every key has its newest row, sums are exact, and the history knows who lost`, async () => {
    const seed = Number(process.env['STERNA_TEST_SEED'] ?? Date.now() % 1_000_000)
    const rounds = Math.ceil((MINUTES * 60_000) / ROUND_MS)
    console.log(`hot keys: seed ${seed}`)
    const record = await runHotKeys(story, { seed, rounds, roundMs: ROUND_MS })
    console.log(`hot keys: ${await judgeHotKeys(story.nodes, record)}`)
  })

  test(`two nodes add to one row, and subtract, for ${SECONDS} seconds`, async () => {
    for (const column of ['balance', 'amount', 'paid'])
      await define(story.nodes, `select sterna.delta_add('account', '${column}')`)
    const { count, ...sums } = await addAndSubtract([story.n1, story.n2], SECONDS)
    await story.ends(ACCOUNT_SQL, [sums])
    console.log(`additions: ${count}`)
  })
})
