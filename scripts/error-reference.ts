/** `npm run docs`: writes docs/errors.md. With `--check` it only says whether the page is up to date. */
import { globSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import { ERROR_CODES } from '../src/core/error-codes.ts'
import { renderErrorPage, sqlErrorsOf } from './error-page.ts'

const root = join(import.meta.dirname, '..')
const path = join(root, 'docs', 'errors.md')
const sqlFiles = globSync('src/mesh/sql/*.sql', { cwd: root })
  .toSorted()
  .map((file) => ({ path: file, text: readFileSync(join(root, file), 'utf8') }))
const page = renderErrorPage(ERROR_CODES, sqlErrorsOf(sqlFiles))

if (process.argv.includes('--check')) {
  if (readPage() !== page) {
    console.error('docs/errors.md is out of date: npm run docs')
    process.exitCode = 1
  }
} else {
  mkdirSync(join(root, 'docs'), { recursive: true })
  writeFileSync(path, page)
}

function readPage(): string | undefined {
  try {
    return readFileSync(path, 'utf8')
  } catch {
    return undefined
  }
}
