/** One statement of a script. */
export interface ScriptStatement {
  readonly text: string
  /** Where it starts in the script, in UTF-16 units. */
  readonly offset: number
}

/** A word, a number, the beginning of something quoted or of a comment, or else one character. */
const TOKEN =
  /--[^\n]*|\/\*|\$(?:[A-Za-z_\u0080-\uffff][\w\u0080-\uffff]*)?\$|[eE]?'|"|[A-Za-z_\u0080-\uffff][\w$\u0080-\uffff]*|\d[\w.]*|\S/g

/**
 * Splits a script at the semicolons between statements, as psql does: not at those in strings, quoted names, dollar
 * quotes, comments, parentheses, or the body of a function in `begin atomic ... end`. What has no statement in it, only
 * blanks and comments, is left out. An unfinished string runs to the end: the server says what is wrong with it.
 */
export function splitStatements(script: string): ScriptStatement[] {
  const statements: ScriptStatement[] = []
  let from = 0
  let isEmpty = true
  let parentheses = 0
  let words: string[] = []
  let blocks = 0
  const finish = (to: number): void => {
    const text = script.slice(from, to)
    const blanks = text.length - text.trimStart().length
    if (!isEmpty) statements.push({ text: text.trim(), offset: from + blanks })
    from = to + 1
    isEmpty = true
    parentheses = 0
    blocks = 0
    words = []
  }
  TOKEN.lastIndex = 0
  for (let match = next(script, 0); match; match = next(script, TOKEN.lastIndex)) {
    const token = match[0]
    if (token.startsWith('--')) continue
    if (token === '/*') TOKEN.lastIndex = endOfComment(script, match.index + 2)
    else if (token === ';' && parentheses === 0 && blocks === 0) finish(match.index)
    else {
      isEmpty = false
      if (token === '(') parentheses++
      else if (token === ')') parentheses = Math.max(0, parentheses - 1)
      else if (token.endsWith("'") || token === '"') TOKEN.lastIndex = endOfQuoted(script, match)
      else if (token.length > 1 && token.startsWith('$')) TOKEN.lastIndex = endOfDollarQuoted(script, match)
      else if (/^[A-Za-z]/.test(token)) {
        const word = token.toLowerCase()
        if (words.length < 4) words.push(word)
        blocks = blocksAfter(word, words, blocks)
      }
    }
  }
  finish(script.length)
  return statements
}

function next(script: string, at: number): RegExpExecArray | null {
  TOKEN.lastIndex = at
  return TOKEN.exec(script)
}

/** How deep in `begin ... end` blocks of a function's body; a `case` has an `end` of its own. */
function blocksAfter(word: string, words: readonly string[], blocks: number): number {
  const isRoutine =
    words[0] === 'create' &&
    words.slice(1).some((each) => each === 'function' || each === 'procedure') &&
    (words[1] !== 'or' || words[2] === 'replace')
  if (!isRoutine) return 0
  if (word === 'begin') return blocks + 1
  if (word === 'case' && blocks > 0) return blocks + 1
  if (word === 'end' && blocks > 0) return blocks - 1
  return blocks
}

function endOfComment(script: string, at: number): number {
  const mark = /\/\*|\*\//g
  mark.lastIndex = at
  let depth = 1
  for (let match = mark.exec(script); match; match = mark.exec(script)) {
    depth += match[0] === '/*' ? 1 : -1
    if (depth === 0) return mark.lastIndex
  }
  return script.length
}

function endOfQuoted(script: string, { 0: token, index }: RegExpExecArray): number {
  const quote = token.at(-1)!
  const escapes = token.length === 2
  for (let at = index + token.length; at < script.length; at++) {
    if (escapes && script[at] === '\\') at++
    else if (script[at] === quote) {
      if (script[at + 1] !== quote) return at + 1
      at++
    }
  }
  return script.length
}

function endOfDollarQuoted(script: string, { 0: tag, index }: RegExpExecArray): number {
  const end = script.indexOf(tag, index + tag.length)
  return end < 0 ? script.length : end + tag.length
}
