import { describe, expect, test } from 'vitest'
// @ts-expect-error plain JavaScript without types
import { isNewEnough, isSatisfied } from './bootstrap.mjs'
// @ts-expect-error plain JavaScript without types
import { summarize } from './test-summary.mjs'

describe('what is installed', () => {
  const wanted = {
    packages: {
      '': { version: '0.1.0' },
      'node_modules/a': { version: '1.0.0' },
      'node_modules/b-darwin': { version: '2.0.0', optional: true },
    },
  }
  test.each([
    ['the same, without packages of other platforms', { 'node_modules/a': { version: '1.0.0' } }, true],
    ['another version', { 'node_modules/a': { version: '1.0.1' } }, false],
    ['a package is missing', {}, false],
    [
      'one too many',
      { 'node_modules/a': { version: '1.0.0' }, 'node_modules/c': { version: '3.0.0' } },
      false,
    ],
  ])('%s', (_, packages, expected) => expect(isSatisfied(wanted, { packages })).toBe(expected))
})

test.each([
  ['18.20.0', false],
  ['20.20.2', false],
  ['22.17.1', false],
  ['22.18.0', true],
  ['24.0.0', true],
])('node %s', (version, expected) => expect(isNewEnough(version)).toBe(expected))

test('the summary counts files that could not be loaded', () => {
  const report = {
    numPassedTests: 3,
    numFailedTests: 1,
    numPendingTests: 2,
    testResults: [
      { status: 'passed', assertionResults: [{ status: 'passed' }] },
      { status: 'failed', assertionResults: [{ status: 'failed' }] },
      { status: 'failed', assertionResults: [] },
    ],
  }
  expect(summarize(report)).toEqual({ passed: 3, failed: 2, skipped: 2 })
})
