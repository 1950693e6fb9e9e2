#!/usr/bin/env node
/**
 * `node scripts/bootstrap.mjs sterna|vitest|bench|sim|install [arguments]`: installs the dependencies when they are missing or older
 * than the lock file, then runs the program with the Node that the project pins. Plain JavaScript: runs on Node 18.
 */
import { spawn, spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, readFileSync, realpathSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { constants, tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')

/** The programs that this script runs, as paths in the checkout. */
const PROGRAMS = {
  sterna: join(root, 'src', 'cli', 'main.ts'),
  vitest: join(root, 'node_modules', 'vitest', 'vitest.mjs'),
  bench: join(root, 'bench', 'main.ts'),
  sim: join(root, 'src', 'sim', 'main.ts'),
}

/** Whether npm has to install: never done, or the lock file asks for something else than is there. */
export function needsInstall(directory = root) {
  const installed = join(directory, 'node_modules', '.package-lock.json')
  const wanted = join(directory, 'package-lock.json')
  if (!existsSync(installed)) return true
  if (statSync(wanted).mtimeMs <= statSync(installed).mtimeMs) return false
  // A newer file may still say the same: git touches files, and reinstalling would disturb what runs.
  return !isSatisfied(JSON.parse(readFileSync(wanted, 'utf8')), JSON.parse(readFileSync(installed, 'utf8')))
}

/** Whether what is installed is what the lock file says; optional packages of other platforms are never there. */
export function isSatisfied(wanted, installed) {
  for (const [path, entry] of Object.entries(installed.packages)) {
    if (wanted.packages[path]?.version !== entry.version) return false
  }
  return Object.entries(wanted.packages).every(
    ([path, entry]) => path === '' || entry.optional || entry.devOptional || installed.packages[path],
  )
}

/** Installs the dependencies, unless another process does that now; exits with a message when that fails. */
export function install() {
  const release = lock()
  try {
    if (!needsInstall()) return
    process.stderr.write('Installing dependencies (once)...\n')
    const result = spawnSync('npm', ['ci', '--loglevel=error', '--no-audit', '--no-fund'], {
      cwd: root,
      // Standard output belongs to the program that runs next.
      stdio: ['ignore', 2, 2],
      env: { ...process.env, NODE_ENV: 'development' },
    })
    if (result.error)
      fail(`npm cannot be run (${result.error.message})`, 'Install Node.js with npm, then try again.')
    if (result.status !== 0) {
      fail(`npm ci failed in ${root}`, 'See the messages above; check the network, then try again.')
    }
  } finally {
    release()
  }
}

/** Waits until no other process installs into this checkout; returns what ends the own turn. */
function lock() {
  const name = createHash('sha256').update(root).digest('hex').slice(0, 16)
  const file = join(tmpdir(), `sterna-install-${name}-${process.getuid?.() ?? ''}`)
  const deadline = Date.now() + 600_000
  let hasSaid = false
  for (;;) {
    try {
      writeFileSync(file, String(process.pid), { flag: 'wx' })
      const release = () => rmSync(file, { force: true })
      process.once('exit', release)
      return release
    } catch (error) {
      if (error.code !== 'EEXIST') return () => {}
    }
    if (!isAlive(Number(readFile(file)))) {
      rmSync(file, { force: true })
      continue
    }
    if (Date.now() > deadline) fail('another process installs dependencies and does not end', `See ${file}.`)
    if (!hasSaid) process.stderr.write('Another process installs the dependencies; waiting for it...\n')
    hasSaid = true
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 200)
  }
}

function readFile(path) {
  try {
    return readFileSync(path, 'utf8')
  } catch {
    return ''
  }
}

function isAlive(pid) {
  try {
    return pid > 0 && process.kill(pid, 0)
  } catch (error) {
    return error.code === 'EPERM'
  }
}

/** The Node to run with: the pinned one, or this one when it is new enough. */
export function chooseNode() {
  const pinned = pinnedNode()
  if (pinned) return pinned
  if (isNewEnough(process.versions.node)) return process.execPath
  // The package fetches its binary in an install script, which npm may have been told not to run.
  const directory = join(root, 'node_modules', 'node')
  if (existsSync(directory)) {
    process.stderr.write('Fetching the Node that the project runs on (once)...\n')
    spawnSync(process.execPath, ['installArchSpecificPackage'], { cwd: directory, stdio: ['ignore', 2, 2] })
    const fetched = pinnedNode()
    if (fetched) {
      // So that npm's scripts (npm run check) find it as well.
      try {
        symlinkSync(fetched, join(root, 'node_modules', '.bin', 'node'))
      } catch {
        // It is there, or the directory cannot be written: the programs that this script runs need no link.
      }
      return fetched
    }
  }
  return fail(
    `Node ${process.versions.node} is too old, and the project's own is not installed`,
    'Run npm ci with install scripts allowed (npm 11 and newer: npm rebuild node), or use Node 22.18 or newer.',
  )
}

/** The binary of the npm package `node`; undefined when it is not there or does not run on this machine. */
function pinnedNode() {
  const { platform, arch } = process
  const candidates = [
    join(root, 'node_modules', 'node', 'bin', 'node'),
    // Where npm puts the real one, also when it did not run the package's install script.
    join(root, 'node_modules', 'node', 'node_modules', `node-${platform}-${arch}`, 'bin', 'node'),
    join(root, 'node_modules', `node-${platform}-${arch}`, 'bin', 'node'),
  ]
  for (const path of candidates) {
    if (!existsSync(path)) continue
    const result = spawnSync(path, ['--version'], { encoding: 'utf8' })
    if (result.status === 0 && isNewEnough(result.stdout.trim().replace(/^v/, ''))) return path
  }
  return undefined
}

/** Whether this version runs TypeScript without building it. */
export function isNewEnough(version) {
  const [major = 0, minor = 0] = version.split('.').map(Number)
  return major > 22 || (major === 22 && minor >= 18)
}

/** Runs a program in the foreground: signals go to it, and this process ends as it ends. */
export function run(node, args) {
  const child = spawn(node, args, {
    stdio: 'inherit',
    // Programs that are started in turn find the same Node.
    env: {
      ...process.env,
      PATH: [dirname(node), join(root, 'node_modules', '.bin'), process.env.PATH].join(':'),
    },
  })
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGQUIT'])
    process.on(signal, () => child.kill(signal))
  child.on('error', (error) => fail(`${node} cannot be run: ${error.message}`, 'Run npm ci, then try again.'))
  child.on('exit', (code, signal) =>
    process.exit(signal ? 128 + (constants.signals[signal] ?? 0) : (code ?? 1)),
  )
}

function fail(message, hint) {
  process.stderr.write(`error: ${message}\nhint:  ${hint}\n`)
  process.exit(1)
}

function main() {
  const [name, ...args] = process.argv.slice(2)
  if (name !== 'install' && !Object.hasOwn(PROGRAMS, name ?? '')) {
    fail(
      `"${name ?? ''}" is not known here`,
      'node scripts/bootstrap.mjs sterna|vitest|bench|sim|install [arguments]',
    )
  }
  if (needsInstall()) install()
  const node = chooseNode()
  if (name !== 'install') run(node, [PROGRAMS[name], ...args])
}

const isEntry = process.argv[1] && pathToFileURL(realpathSync(process.argv[1])).href === import.meta.url
if (isEntry) main()
