// Package escape lets an expression use the keywords and the reserved words of CEL
// as names of fields.
//
// CEL's parser refuses such names. So [Mask] replaces each of them by another name of
// the same length before the text is parsed, and the names are put back in the parsed
// expression. Equal lengths keep the positions of faults.
package escape

import (
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// Keywords have a meaning of their own, so they are names of fields only after a
// dot.
var keywords = []string{"false", "in", "null", "true"}

// Words that CEL reserves. Without a dot, they are also names.
var words = []string{
	"as", "break", "const", "continue", "else", "for", "function", "if", "import", "let", "loop", "package",
	"namespace", "return", "var", "void", "while",
}

// Reserved reports whether a name is a keyword or a reserved word.
func Reserved(name string) bool {
	return slices.Contains(words, name) || slices.Contains(keywords, name)
}

// IsKeyword reports whether a name can be a field only after a dot.
func IsKeyword(name string) bool { return slices.Contains(keywords, name) }

// Mask replaces the names of fields that CEL refuses. names maps each replacement to
// the original name; it is nil if the text has none.
func Mask(src string) (masked string, names map[string]string) {
	text := []rune(src)
	var at []token
	used := map[string]bool{}
	for _, t := range tokens(text) {
		used[t.text] = true
		if t.call || !slices.Contains(words, t.text) && !(t.member && slices.Contains(keywords, t.text)) {
			continue
		}
		at = append(at, t)
	}
	if len(at) == 0 {
		return src, nil
	}
	names = map[string]string{}
	by := map[string]string{} // the replacement of a name
	for _, t := range at {
		to, ok := by[t.text]
		if !ok {
			if to = unused(len(t.text), used); to == "" {
				return src, nil
			}
			by[t.text], names[to], used[to] = to, t.text, true
		}
		copy(text[t.start:], []rune(to))
	}
	return string(text), names
}

// unused returns a name of a length that the text does not contain; "" if there is
// none.
func unused(size int, used map[string]bool) string {
	for i := range int64(36 * 36) {
		digits := strconv.FormatInt(i, 36)
		if len(digits) >= size {
			break
		}
		name := "_" + strings.Repeat("0", size-1-len(digits)) + digits
		if !used[name] {
			return name
		}
	}
	return ""
}

// A token is a name in the text of an expression.
type token struct {
	text   string
	start  int
	member bool // after a dot
	call   bool // before a parenthesis
}

// tokens returns the names in a text: not those in strings and comments.
func tokens(text []rune) (out []token) {
	dot := false // the last token is a dot
	for i := 0; i < len(text); {
		c := text[i]
		switch {
		case unicode.IsSpace(c):
			i++
			continue
		case c == '/' && i+1 < len(text) && text[i+1] == '/':
			for i < len(text) && text[i] != '\n' {
				i++
			}
			continue
		case c == '\'' || c == '"':
			i = afterString(text, i, false)
		case c == '`':
			for i++; i < len(text) && text[i] != '`'; i++ {
			}
			i++
		case c >= '0' && c <= '9':
			for i < len(text) && (part(text[i]) || text[i] == '.' && i+1 < len(text) && text[i+1] >= '0' && text[i+1] <= '9') {
				i++
			}
		case part(c):
			start := i
			for i < len(text) && part(text[i]) {
				i++
			}
			name := string(text[start:i])
			if i < len(text) && (text[i] == '\'' || text[i] == '"') && strings.Trim(name, "rRbB") == "" {
				i = afterString(text, i, strings.ContainsAny(name, "rR"))
				break
			}
			next := i
			for next < len(text) && unicode.IsSpace(text[next]) {
				next++
			}
			out = append(out, token{name, start, dot, next < len(text) && text[next] == '('})
		default:
			i++
		}
		dot = c == '.'
	}
	return out
}

// afterString returns the end of the string that starts with the quote at i.
func afterString(text []rune, i int, raw bool) int {
	quote := text[i : i+1]
	if i+2 < len(text) && text[i+1] == text[i] && text[i+2] == text[i] {
		quote = text[i : i+3]
	}
	for i += len(quote); i < len(text); i++ {
		if text[i] == '\\' && !raw {
			i++
		} else if i+len(quote) <= len(text) && slices.Equal(text[i:i+len(quote)], quote) {
			return i + len(quote)
		}
	}
	return len(text)
}

func part(c rune) bool {
	return c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}
