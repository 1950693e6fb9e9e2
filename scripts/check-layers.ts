/** `npm run layers`: checks that imports point downwards, as ARCHITECTURE.md says. */
import { globSync, readFileSync } from 'node:fs'
import { join } from 'node:path'

import { findViolations } from './layer-rules.ts'

const root = join(import.meta.dirname, '..')
const files = globSync('src/**/*.ts', { cwd: root })
  .map((path) => path.replaceAll('\\', '/'))
  .toSorted()
  .map((path) => ({ path, text: readFileSync(join(root, path), 'utf8') }))
const violations = findViolations(files)
for (const { path, line, message } of violations) console.error(`${path}:${line}: ${message}`)
if (violations.length > 0) {
  console.error(`${violations.length} import(s) break the layers of ARCHITECTURE.md`)
  process.exitCode = 1
}
