package codec

import (
	"fmt"
	"unicode/utf8"
)

// CheckText returns an error with the position of the first byte that is not UTF-8, nil
// if there is none. Text is never repaired: two texts that are repaired can become one.
func CheckText(text []byte) error {
	if validUTF8(text) {
		return nil
	}
	at := invalidAt(text)
	return fmt.Errorf("byte %d (0x%02x) is not UTF-8", at, text[at])
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
