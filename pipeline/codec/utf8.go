package codec

import (
	"fmt"
	"strconv"
	"unicode/utf8"
)

// ValidText reports whether a text is UTF-8.
func ValidText(text []byte) bool { return validUTF8(text) }

// CheckText returns an error with the position of the first byte that is not UTF-8, nil
// if there is none. Text is never repaired: two texts that are repaired can become one.
func CheckText(text []byte) error {
	if validUTF8(text) {
		return nil
	}
	at := invalidAt(text)
	return fmt.Errorf("byte %d (0x%02x) is not UTF-8", at, text[at])
}

// CheckJSON returns an error with the column of the first character of a JSON text that is
// not Unicode: a byte that is not UTF-8, or an escape of half of a surrogate pair.
// encoding/json replaces both by U+FFFD. Columns count bytes from 1.
func CheckJSON(text []byte) error {
	if at, what := InvalidJSON(text); at >= 0 {
		return fmt.Errorf("column %d: %s", at+1, what)
	}
	return nil
}

// InvalidJSON returns the position and a description of what [CheckJSON] finds; the
// position is -1 if it finds nothing.
func InvalidJSON(text []byte) (at int, what string) {
	if !validUTF8(text) {
		at = invalidAt(text)
		return at, fmt.Sprintf("not UTF-8: byte 0x%02x", text[at])
	}
	for i := 0; i < len(text); i++ {
		if text[i] != '\\' {
			continue
		}
		size, ok := escape(text[i:])
		if !ok {
			return i, fmt.Sprintf("not Unicode: %s is half of a surrogate pair", text[i:i+6])
		}
		i += size - 1
	}
	return -1, ""
}

// escape returns the size of an escape in a JSON string, both halves of a surrogate pair
// together. It is not ok for one half. An escape that is not valid JSON is ok.
func escape(text []byte) (size int, ok bool) {
	switch r := unit(text); {
	case r < 0:
		return 2, true
	case r < 0xd800 || r > 0xdfff:
		return 6, true
	case r <= 0xdbff:
		if low := unit(text[6:]); low >= 0xdc00 && low <= 0xdfff {
			return 12, true
		}
	}
	return 6, false
}

// unit returns the UTF-16 unit of the escape \\uXXXX at the start of a text, -1 if there is
// none.
func unit(text []byte) int {
	if len(text) < 6 || text[0] != '\\' || text[1] != 'u' {
		return -1
	}
	r, err := strconv.ParseUint(string(text[2:6]), 16, 16)
	if err != nil {
		return -1
	}
	return int(r)
}

// invalidAt returns the position of the first byte that is not UTF-8, or the length.
func invalidAt(b []byte) int {
	at := 0
	for at < len(b) {
		r, size := utf8.DecodeRune(b[at:])
		if r == utf8.RuneError && size == 1 {
			break
		}
		at += size
	}
	return at
}
