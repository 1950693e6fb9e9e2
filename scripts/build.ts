/** `npm run build`: compiles src/ to dist/ for publishing, with the SQL files beside the code that reads them. */
import { execFileSync } from 'node:child_process'
import { cpSync, globSync, readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'

const root = join(import.meta.dirname, '..')
const dist = join(root, 'dist')

rmSync(dist, { recursive: true, force: true })
const tsc = join(root, 'node_modules', 'typescript', 'bin', 'tsc')
try {
  execFileSync(process.execPath, [tsc, '--project', 'tsconfig.build.json'], { cwd: root, stdio: 'inherit' })
} catch {
  process.exit(1)
}

const sqlFiles = globSync('src/**/*.sql', { cwd: root })
for (const file of sqlFiles) cpSync(join(root, file), join(dist, file.slice('src/'.length)))

// tsc rewrites import statements only: a path in a string that ends in .ts would not exist in dist.
const stale = globSync('dist/**/*.js', { cwd: root }).filter((file) =>
  /^(?!\s*(?:\/\/|\*|\/\*)).*['"`]\.{1,2}\/[^'"`\n]*\.ts['"`]/m.test(readFileSync(join(root, file), 'utf8')),
)
for (const file of stale) console.error(`${file} names a .ts file in a string; it does not exist beside it`)
if (stale.length > 0) process.exitCode = 1
console.log(`built dist: ${globSync('**/*.js', { cwd: dist }).length} modules, ${sqlFiles.length} SQL files`)
