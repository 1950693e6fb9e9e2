/**
 * `node scripts/test-summary.mjs FILE`: prints `N passed, N failed` from vitest's JSON report, and fails when anything failed or
 * nothing ran. A test file that could not be loaded counts as one failure.
 */
import { readFileSync } from 'node:fs'
import { pathToFileURL } from 'node:url'

/** Counts the tests of a report. Skipped tests are neither passed nor failed, and are said separately. */
export function summarize(report) {
  const unloaded = report.testResults.filter(
    ({ status, assertionResults }) =>
      status === 'failed' && !assertionResults.some((it) => it.status === 'failed'),
  )
  return {
    passed: report.numPassedTests,
    failed: report.numFailedTests + unloaded.length,
    skipped: report.numPendingTests + (report.numTodoTests ?? 0),
  }
}

function main(path) {
  let summary = { passed: 0, failed: 1, skipped: 0 }
  try {
    summary = summarize(JSON.parse(readFileSync(path, 'utf8')))
  } catch (error) {
    console.error(`no test report: ${error.message}`)
  }
  if (summary.skipped > 0) console.log(`SKIPPED: ${summary.skipped} tests`)
  console.log(`${summary.passed} passed, ${summary.failed} failed`)
  if (summary.failed > 0 || summary.passed === 0) process.exitCode = 1
}

if (process.argv[1] && pathToFileURL(process.argv[1]).href === import.meta.url) main(process.argv[2])
