import { extname } from 'node:path'
import { fileURLToPath } from 'node:url'

/** The program and arguments by which this very `sterna` is started again. */
export function sternaCommand(): [string, string] {
  const main = new URL(`./main${extname(import.meta.url)}`, import.meta.url)
  return [process.execPath, fileURLToPath(main)]
}
