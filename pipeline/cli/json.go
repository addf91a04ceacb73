package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// OrderedJSON is a JSON object that keeps the order of its fields.
type OrderedJSON []JSONField

// A JSONField is a field of an [OrderedJSON] object.
type JSONField struct {
	Name  string
	Value any
}

// Get returns the value of a field, and whether the object has it.
func (o OrderedJSON) Get(name string) (any, bool) {
	for _, f := range o {
		if f.Name == name {
			return f.Value, true
		}
	}
	return nil, false
}

// MarshalJSON implements [json.Marshaler].
func (o OrderedJSON) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	b.WriteByte('{')
	for i, f := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		if err := enc.Encode(f.Name); err != nil {
			return nil, err
		}
		b.WriteByte(':')
		if err := enc.Encode(f.Value); err != nil {
			return nil, err
		}
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// ParseJSON parses a JSON value. Numbers become [json.Number], arrays []any, and objects
// [OrderedJSON].
func ParseJSON(text []byte) (any, error) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	return nextJSON(d)
}

func nextJSON(d *json.Decoder) (any, error) {
	token, err := d.Token()
	if err != nil {
		return nil, err
	}
	switch token {
	case json.Delim('['):
		list := []any{}
		for d.More() {
			v, err := nextJSON(d)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		_, err := d.Token()
		return list, err
	case json.Delim('{'):
		object := OrderedJSON{}
		for d.More() {
			name, err := d.Token()
			if err != nil {
				return nil, err
			}
			v, err := nextJSON(d)
			if err != nil {
				return nil, err
			}
			object = append(object, JSONField{name.(string), v})
		}
		_, err := d.Token()
		return object, err
	}
	return token, nil
}

// PrintJSON writes a value as indented JSON.
func PrintJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// Quote returns a text as a JSON string.
func Quote(text string) string { return CompactJSON(text) }

// CompactJSON returns a value as JSON on one line. For a value that JSON cannot represent,
// it returns the text of [fmt.Sprint].
func CompactJSON(v any) string {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Sprint(v)
	}
	return strings.ReplaceAll(strings.TrimSuffix(b.String(), "\n"), "\n", "")
}
