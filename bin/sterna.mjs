#!/usr/bin/env node
/**
 * The command `sterna`. In a checkout it installs the dependencies when they are missing and runs the TypeScript sources with
 * the Node that the project pins; as a published package it runs dist/. Plain JavaScript: runs on Node 18.
 */
import { existsSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const sources = join(root, 'src', 'cli', 'main.ts')

if (existsSync(sources)) {
  const bootstrap = await import(pathToFileURL(join(root, 'scripts', 'bootstrap.mjs')).href)
  if (bootstrap.needsInstall()) bootstrap.install()
  if (bootstrap.isNewEnough(process.versions.node)) await import(pathToFileURL(sources).href)
  else bootstrap.run(bootstrap.chooseNode(), [sources, ...process.argv.slice(2)])
} else {
  await import(pathToFileURL(join(root, 'dist', 'cli', 'main.js')).href)
}
