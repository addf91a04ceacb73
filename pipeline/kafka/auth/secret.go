package auth

import (
	"fmt"
	"log/slog"
)

const redacted = "[redacted]"

// A Secret is a password, token or private key. Printed, logged or marshaled in any
// way, it appears as "[redacted]", or as an empty string if it is empty. Only Reveal
// returns the text.
//
// The text is behind a pointer: fmt does not call methods on unexported struct
// fields, and there it prints only the address.
type Secret struct{ text *string }

// NewSecret returns a Secret with the text.
func NewSecret(text string) Secret {
	if text == "" {
		return Secret{}
	}
	return Secret{&text}
}

// Reveal returns the text.
func (s Secret) Reveal() string {
	if s.text == nil {
		return ""
	}
	return *s.text
}

// IsZero reports whether the text is empty.
func (s Secret) IsZero() bool { return s.text == nil }

func (s Secret) String() string {
	if s.IsZero() {
		return ""
	}
	return redacted
}

// GoString redacts the text for %#v.
func (s Secret) GoString() string { return fmt.Sprintf("auth.Secret(%q)", s.String()) }

// Format redacts the text for every other verb.
func (s Secret) Format(f fmt.State, verb rune) {
	text := s.String()
	if verb == 'v' && f.Flag('#') {
		text = s.GoString()
	}
	_, _ = f.Write([]byte(text)) // a Formatter cannot report an error
}

// MarshalText redacts the text in JSON, YAML and other encodings.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// LogValue redacts the text in logs.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }
