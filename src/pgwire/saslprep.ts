/* eslint-disable no-misleading-character-class, no-control-regex -- these are ranges of code points, not text. */

/** Source: RFC 3454, tables C.1.2 and B.1. */
const NON_ASCII_SPACE = /[\u00a0\u1680\u2000-\u200b\u202f\u205f\u3000]/gu
const MAPPED_TO_NOTHING = /[\u00ad\u034f\u1806\u180b-\u180d\u200c\u200d\u2060\ufe00-\ufe0f\ufeff]/gu

/** Source: RFC 3454, tables C.1.2 to C.9. */
const PROHIBITED =
  /[\u0000-\u001f\u007f-\u00a0\u0340\u0341\u06dd\u070f\u1680\u180e\u2000-\u200f\u2028-\u202f\u205f-\u2063\u206a-\u206f\u2ff0-\u2ffb\u3000\ud800-\udfff\ue000-\uf8ff\ufdd0-\ufdef\ufeff\ufff9-\uffff\u{1d173}-\u{1d17a}\u{e0001}\u{e0020}-\u{e007f}\u{f0000}-\u{10ffff}]/u

/**
 * Code points that Unicode 3.2 did not have (RFC 3454, table A.1). Approximate: beyond the first plane by its blocks, in
 * the first plane what is unassigned today. It matters only to a password that has such a one beside one that changes.
 */
const UNASSIGNED =
  /\p{Cn}|(?![\u{10300}-\u{1034a}\u{10400}-\u{1044d}\u{1d000}-\u{1d7ff}\u{20000}-\u{2a6d6}\u{2f800}-\u{2fa1d}])[\u{10000}-\u{10ffff}]/u

/** Source: RFC 3454, table D.1. */
const RIGHT_TO_LEFT =
  /[\u05be\u05c0\u05c3\u05d0-\u05ea\u05f0-\u05f4\u061b\u061f\u0621-\u063a\u0640-\u064a\u066d-\u066f\u0671-\u06d5\u06dd\u06e5\u06e6\u06fa-\u06fe\u0700-\u070d\u0710\u0712-\u072c\u0780-\u07a5\u07b1\u200f\ufb1d\ufb1f-\ufdfc\ufe70-\ufefc]/u
const LETTER = /\p{L}/u

/**
 * The form in which a password enters SCRAM. As in PostgreSQL, a password that SASLprep does not allow is used as it is.
 * Source: RFC 4013; PostgreSQL src/common/saslprep.c.
 */
export function saslPrep(password: string): string {
  const prepared = password.replace(NON_ASCII_SPACE, ' ').replace(MAPPED_TO_NOTHING, '').normalize('NFKC')
  if (prepared === '' || isAscii(password)) return password
  if (PROHIBITED.test(prepared) || UNASSIGNED.test(prepared)) return password
  return isMixedInDirection(prepared) ? password : prepared
}

function isAscii(text: string): boolean {
  return Buffer.byteLength(text) === text.length
}

/** A text with right-to-left characters must begin and end with one and have no left-to-right ones. */
function isMixedInDirection(text: string): boolean {
  if (!RIGHT_TO_LEFT.test(text)) return false
  const characters = Array.from(text)
  if (!RIGHT_TO_LEFT.test(characters[0]!) || !RIGHT_TO_LEFT.test(characters.at(-1)!)) return true
  return characters.some((character) => LETTER.test(character) && !RIGHT_TO_LEFT.test(character))
}
