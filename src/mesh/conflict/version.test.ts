import fc from 'fast-check'
import { expect, test } from 'vitest'
import { pgTimeOf } from '../../core/pg-time.ts'
import { compareVersions, mayReplace, type RowVersion } from './version.ts'

const versions: fc.Arbitrary<RowVersion> = fc.record({
  time: fc
    .oneof(fc.constantFrom(0n, 1n, 2n), fc.bigInt({ min: -(1n << 63n), max: (1n << 63n) - 1n }))
    .map(pgTimeOf),
  nodeId: fc.integer({ min: 1, max: 4 }),
})

test('a total order: exactly one of older, same, newer; transitive', () => {
  fc.assert(
    fc.property(versions, versions, versions, (a, b, c) => {
      const same = a.time === b.time && a.nodeId === b.nodeId
      expect(compareVersions(a, b) === 0).toBe(same)
      expect(Math.sign(compareVersions(a, b)) + Math.sign(compareVersions(b, a))).toBe(0)
      if (compareVersions(a, b) <= 0 && compareVersions(b, c) <= 0)
        expect(compareVersions(a, c)).toBeLessThanOrEqual(0)
    }),
    { numRuns: 2000 },
  )
})

test('in whatever order changes of different versions come, the greatest stays', () => {
  fc.assert(
    fc.property(fc.array(versions, { minLength: 1 }), (changes) => {
      let row: RowVersion | null = null
      for (const change of changes) if (mayReplace(change, row)) row = change
      expect(changes.every((change) => compareVersions(change, row!) <= 0)).toBe(true)
    }),
  )
})

test('the same version again replaces, and nothing is older than unknown', () => {
  fc.assert(
    fc.property(versions, (version) => {
      expect(mayReplace(version, version)).toBe(true)
      expect(mayReplace(version, null)).toBe(true)
    }),
  )
})
