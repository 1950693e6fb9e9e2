import { posix } from 'node:path'

/** One import statement of a file. `typeOnly` imports are gone at run time. */
export interface ImportStatement {
  readonly specifier: string
  readonly typeOnly: boolean
  readonly line: number
}

/** A file by its path from the root of the repository, with `/`. */
export interface SourceFile {
  readonly path: string
  readonly text: string
}

/** An import that breaks a rule. */
export interface Violation {
  readonly path: string
  readonly line: number
  readonly message: string
}

/** Layers by rank: a file may import from its own layer and from layers of lower rank. As in ARCHITECTURE.md. */
const LAYERS: readonly { readonly folder: string; readonly rank: number; readonly pure: boolean }[] = [
  { folder: 'src/cli', rank: 6, pure: false },
  { folder: 'src/local', rank: 5, pure: false },
  { folder: 'src/agent', rank: 4, pure: false },
  { folder: 'src/mesh/conflict', rank: 1, pure: true },
  { folder: 'src/mesh', rank: 3, pure: false },
  { folder: 'src/sim', rank: 2, pure: true },
  { folder: 'src/postgres', rank: 2, pure: false },
  { folder: 'src/pgwire', rank: 1, pure: true },
  { folder: 'src/core', rank: 0, pure: true },
]

/** The modules of Node that do no input or output: all that a pure layer may use. */
const PURE_NODE_MODULES: ReadonlySet<string> = new Set(['node:buffer', 'node:crypto', 'node:util'])

/** Packages that do no input or output. */
const PURE_PACKAGES: ReadonlySet<string> = new Set(['zod'])

/**
 * Finds the static, dynamic and re-exporting imports of a TypeScript text. Static ones are recognised where a
 * formatted file has them: at the beginning of a line.
 */
export function importsOf(text: string): ImportStatement[] {
  const found: ImportStatement[] = []
  const add = (specifier: string | undefined, typeOnly: boolean, at: number): void => {
    if (specifier === undefined) return
    found.push({ specifier, typeOnly, line: text.slice(0, at).split('\n').length })
  }
  for (const match of text.matchAll(
    /^(?:import|export)\s+(type\s+)?[^'"`;=()]*?\bfrom\s*['"]([^'"]+)['"]/gm,
  )) {
    add(match[2], match[1] !== undefined, match.index)
  }
  for (const match of text.matchAll(/^import\s*['"]([^'"]+)['"]/gm)) add(match[1], false, match.index)
  for (const match of text.matchAll(/^(?!\s*(?:\/\/|\*)).*?\bimport\(\s*['"]([^'"]+)['"]/gm)) {
    add(match[1], false, match.index)
  }
  return found.toSorted((a, b) => a.line - b.line)
}

/** Checks files against the rules: direction of imports, no IO in pure layers, no cycles, no tests in src. */
export function findViolations(files: readonly SourceFile[]): Violation[] {
  const edges = new Map<string, string[]>()
  const violations: Violation[] = []
  for (const file of files) {
    if (!file.path.startsWith('src/') || isTest(file.path)) continue
    const imports = importsOf(file.text)
    for (const statement of imports) {
      const message = breaks(file.path, statement)
      if (message !== undefined) violations.push({ path: file.path, line: statement.line, message })
    }
    const loaded = imports.filter((it) => !it.typeOnly && it.specifier.startsWith('.'))
    edges.set(
      file.path,
      loaded.map((it) => resolve(file.path, it.specifier)),
    )
    if (layerOf(file.path) === undefined) {
      const message = 'the folder belongs to no layer: add it to ARCHITECTURE.md and scripts/layer-rules.ts'
      violations.push({ path: file.path, line: 1, message })
    }
  }
  for (const cycle of findCycles(edges)) {
    violations.push({ path: cycle[0]!, line: 1, message: `files import each other: ${cycle.join(' -> ')}` })
  }
  return violations
}

/** The rule that one import breaks, as a sentence; undefined when it breaks none. */
function breaks(path: string, statement: ImportStatement): string | undefined {
  const from = layerOf(path)
  if (from === undefined) return undefined
  const { specifier } = statement
  if (!specifier.startsWith('.')) {
    if (!from.pure || statement.typeOnly) return undefined
    const allowed = specifier.startsWith('node:')
      ? PURE_NODE_MODULES.has(specifier)
      : PURE_PACKAGES.has(specifier)
    return allowed ? undefined : `${from.folder} does no IO, so it must not import ${specifier}`
  }
  const target = resolve(path, specifier)
  if (target === 'package.json') return undefined
  if (!target.startsWith('src/')) return `src must not import ${target.split('/')[0]} (${specifier})`
  if (isTest(target)) return `only tests import tests (${specifier})`
  const to = layerOf(target)
  if (to === undefined || to.folder === from.folder || to.rank < from.rank) return undefined
  return to.rank === from.rank
    ? `${from.folder} and ${to.folder} stand beside each other and must not import each other (${specifier})`
    : `${from.folder} is below ${to.folder} and must not import from it (${specifier})`
}

function layerOf(path: string): (typeof LAYERS)[number] | undefined {
  return LAYERS.find((layer) => path.startsWith(`${layer.folder}/`))
}

function isTest(path: string): boolean {
  return path.endsWith('.test.ts')
}

function resolve(path: string, specifier: string): string {
  return posix.normalize(posix.join(posix.dirname(path), specifier))
}

/** One cycle for each back edge of a depth-first walk, each beginning and ending with the same file. */
function findCycles(edges: ReadonlyMap<string, readonly string[]>): string[][] {
  const cycles: string[][] = []
  const done = new Set<string>()
  const trail: string[] = []
  const visit = (path: string): void => {
    const at = trail.indexOf(path)
    if (at >= 0) {
      cycles.push([...trail.slice(at), path])
      return
    }
    if (done.has(path)) return
    trail.push(path)
    for (const next of edges.get(path) ?? []) visit(next)
    trail.pop()
    done.add(path)
  }
  for (const path of edges.keys()) visit(path)
  return cycles
}
