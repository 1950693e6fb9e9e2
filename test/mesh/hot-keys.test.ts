import { afterAll, beforeAll, describe, test } from 'vitest'

import { judgeHotKeys } from '../harness/hot-keys-judge.ts'
import { HOT_SCHEMA, runHotKeys } from '../harness/hot-keys.ts'
import { testLayout } from '../harness/layout.ts'
import { startStory, type Story } from '../harness/story.ts'

const ROUNDS = 2
const ROUND_MS = 3000

const layout = await testLayout()

describe.skipIf(layout.missing !== null)(`few keys that all nodes write, ${layout.name}`, () => {
  let story: Story

  beforeAll(async () => {
    story = await startStory({ count: layout.versions.length, version: layout.versions, schema: HOT_SCHEMA })
  })
  afterAll(() => story?.stop())

  test('while links fail: every key has its newest row, sums are exact, and the history knows who lost', async () => {
    const seed = Number(process.env['STERNA_TEST_SEED'] ?? Date.now() % 1_000_000)
    console.log(`hot keys: seed ${seed}`)
    const record = await runHotKeys(story, { seed, rounds: ROUNDS, roundMs: ROUND_MS })
    console.log(`hot keys: ${await judgeHotKeys(story.nodes, record)}`)
  }, 180_000)
})
