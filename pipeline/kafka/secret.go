package kafka

import (
	"fmt"
	"log/slog"
)

const redacted = "[redacted]"

// A Secret is a password, token or private key. However it is printed, logged
// or marshalled it shows as "[redacted]", or as nothing if it is empty; only
// Reveal gives the text.
//
// The text is behind a pointer, so that even printing a struct that holds a
// Secret in an unexported field, where fmt may call no methods, shows an
// address at most.
type Secret struct{ text *string }

// NewSecret returns a Secret of the text.
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

// IsZero reports whether there is no text.
func (s Secret) IsZero() bool { return s.text == nil }

func (s Secret) String() string {
	if s.IsZero() {
		return ""
	}
	return redacted
}

// GoString keeps the text from %#v.
func (s Secret) GoString() string { return fmt.Sprintf("kafka.Secret(%q)", s.String()) }

// Format keeps the text from every other verb.
func (s Secret) Format(f fmt.State, verb rune) {
	text := s.String()
	if verb == 'v' && f.Flag('#') {
		text = s.GoString()
	}
	_, _ = f.Write([]byte(text)) // as in every Formatter, there is nobody to tell
}

// MarshalText keeps the text from JSON, YAML and the like.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// LogValue keeps the text from logs.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }
