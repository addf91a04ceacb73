package wording

import (
	"strings"
	"unicode"
)

// Snake returns OrderCreated as order_created. whole keeps capitals together:
// HTTPCall is http_call, not h_t_t_p_call. An underscore stays one.
func Snake(name string, whole bool) string {
	var b strings.Builder
	runes := []rune(name)
	for i, r := range runes {
		starts := !whole || i > 0 && !unicode.IsUpper(runes[i-1]) || i+1 < len(runes) && unicode.IsLower(runes[i+1])
		if unicode.IsUpper(r) && i > 0 && runes[i-1] != '_' && starts {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}
