import { spawnSync } from 'node:child_process'
import { chmod, mkdtemp, readFile, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { delimiter, join } from 'node:path'
import { fileURLToPath } from 'node:url'

import { afterAll, beforeAll, describe, expect, it } from 'vitest'

import { guardDirectory } from './harness/guard.ts'
import { startMesh, type TestMesh } from './harness/mesh.ts'
import { waitUntil } from './harness/wait.ts'

/*
 * Runs the examples of the documentation. In Markdown, `sql test n1` after the three backticks is SQL that `sterna sql n1`
 * runs (each of several nodes in turn), `sh test` is a shell script in which `sterna` is this program; with `fails` it has to
 * fail. A block `text` right after it is the output expected; in it, `...` stands for anything, as a line for any lines.
 */

const ROOT = fileURLToPath(new URL('..', import.meta.url))
const PAGES = ['README.md', 'docs/sql.md', 'docs/ddl.md', 'docs/conflicts.md', 'docs/operating.md']
const HAS_PSQL = spawnSync('psql', ['--version']).status === 0

interface Example {
  readonly line: number
  readonly language: string
  readonly nodes: readonly string[]
  readonly fails: boolean
  readonly code: string
  /** Null where the page shows no output. */
  readonly output: string | null
}

/** The examples of a page that are marked for testing. */
function examplesOf(markdown: string): Example[] {
  const block = /^```(sql|sh) test( [^\n]*)?\n([\s\S]*?)^```\n(?:\n```text\n([\s\S]*?)^```\n)?/gm
  return [...markdown.matchAll(block)].map((match) => {
    const words = (match[2] ?? '').trim().split(/\s+/).filter(Boolean)
    return {
      line: markdown.slice(0, match.index).split('\n').length,
      language: match[1]!,
      nodes: words.filter((word) => word !== 'fails'),
      fails: words.includes('fails'),
      code: match[3]!,
      output: match[4] ?? null,
    }
  })
}

/** Output with `...` as a pattern. */
function patternOf(output: string): RegExp {
  const lines = output
    .trimEnd()
    .split('\n')
    .map((line) =>
      line.trim() === '...'
        ? '(?:.*\\n)*?(?:.*)'
        : line
            .split('...')
            .map((part) => part.replaceAll(/[.*+?^${}()|[\]\\]/g, '\\$&'))
            .join('.*?'),
    )
  return new RegExp(`^${lines.join('\\n')}$`)
}

describe('how examples are compared', () => {
  it('finds those that are marked, with their output', () => {
    const page =
      'x\n```sql test n1 n2 fails\nselect 1\n```\n\n```text\na\n```\n\n```sql\nselect 2\n```\n\n```sh test\nls\n```\n'
    expect(examplesOf(page)).toEqual([
      { line: 2, language: 'sql', nodes: ['n1', 'n2'], fails: true, code: 'select 1\n', output: 'a\n' },
      { line: 14, language: 'sh', nodes: [], fails: false, code: 'ls\n', output: null },
    ])
  })

  it.each([
    ['a\nb', 'a\nb', true],
    ['a\nb', 'a\nc', false],
    ['a\n...', 'a\nb\nc', true],
    ['a\n...\nd', 'a\nb\nc\nd', true],
    ['a ... c', 'a b c', true],
    ['(1 row)', '(1 row)', true],
    ['a', 'a\nb', false],
  ])('%j matches %j: %s', (expected, actual, matches) => {
    expect(patternOf(expected).test(actual)).toBe(matches)
  })
})

let mesh: TestMesh
let directory: string

beforeAll(async () => {
  mesh = await startMesh({ count: 3, version: '18' })
  directory = await mkdtemp(join(tmpdir(), 'sterna-docs-'))
  guardDirectory(directory)
  const nodes = mesh.nodes.map(({ name, dsn }) => ({ name, dsn }))
  const clusterFile = join(directory, 'docs.cluster.json')
  await writeFile(clusterFile, JSON.stringify({ name: 'docs', nodes }), { mode: 0o600 })
  const sterna = `exec "${process.execPath}" "${join(ROOT, 'src/cli/main.ts')}" "$@"\n`
  await writeFile(join(directory, 'sterna'), `#!/bin/sh\n${sterna}`)
  await writeFile(join(directory, 'npx'), `#!/bin/sh\n[ "$1" = sterna ] || exit 127\nshift\n${sterna}`)
  await Promise.all(['sterna', 'npx'].map((name) => chmod(join(directory, name), 0o755)))
})
afterAll(async () => mesh?.stop())

// One after the other on one mesh: the last page takes a node out of it.
describe.each(PAGES)('%s', async (page) => {
  const examples = examplesOf(await readFile(join(ROOT, page), 'utf8'))

  beforeAll(async () => {
    const [n1] = mesh.nodes
    // What the page before had retried is tried in a moment.
    await waitUntil('all is well', () => Promise.resolve(run(['sterna', 'status']).code === 0))
    const tables = await n1!.query<{ name: string }>(
      "select quote_ident(tablename) as name from pg_tables where schemaname = 'public'",
    )
    if (tables.length > 0) await n1!.exec(`drop table ${tables.map(({ name }) => name).join(', ')} cascade`)
  })

  it('has examples', () => {
    expect(examples.length).toBeGreaterThan(0)
  })

  const run = (args: readonly string[], input = ''): { code: number | null; text: string } => {
    const { status, stdout, stderr, error } = spawnSync(args[0]!, args.slice(1), {
      cwd: directory,
      input,
      encoding: 'utf8',
      timeout: 50_000,
      env: {
        ...process.env,
        PATH: `${directory}${delimiter}${process.env['PATH']}`,
        STERNA_CLUSTER: join(directory, 'docs.cluster.json'),
        NODE_OPTIONS: '',
      },
    })
    if (error) throw error
    return { code: status, text: `${stdout}${stderr}`.trimEnd() }
  }

  for (const example of examples) {
    const needsPsql = example.language === 'sh' && /\bpsql\b/.test(example.code)
    it.skipIf(needsPsql && !HAS_PSQL)(`line ${example.line}`, async () => {
      await mesh.settle()
      const runs =
        example.language === 'sh'
          ? [run(['bash', '--norc', '-euo', 'pipefail', '-c', example.code])]
          : example.nodes.map((node) => run(['sterna', 'sql', node, '-'], example.code))
      for (const { code, text } of runs) {
        if ((code === 0) === example.fails) throw new Error(`exit code ${code}:\n${text}`)
        if (example.output !== null && !patternOf(example.output).test(text))
          expect(text).toBe(example.output)
      }
    })
  }
})
