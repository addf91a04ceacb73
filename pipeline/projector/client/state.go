package client

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// jsonMember is a member of a JSON object.
type jsonMember struct {
	name  string
	value json.RawMessage
}

// members returns the members of a JSON object in order.
func members(raw json.RawMessage) (out []jsonMember, err error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, fmt.Errorf("the state is not a JSON object: %s", raw)
	}
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			return nil, err
		}
		m := jsonMember{name: fmt.Sprint(name)}
		if err := dec.Decode(&m.value); err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	return out, nil
}

// leavesOf returns the members of a JSON object by dotted path. It descends into objects,
// except those for which field returns true.
func leavesOf(raw json.RawMessage, under string, field func(path string) bool) (out []jsonMember, err error) {
	all, err := members(raw)
	for _, m := range all {
		m.name = under + m.name
		if len(m.value) == 0 || m.value[0] != '{' || field(m.name) {
			out = append(out, m)
			continue
		}
		below, err := leavesOf(m.value, m.name+".", field)
		if err != nil {
			return nil, err
		}
		out = append(out, below...)
	}
	return out, err
}

// plainJSON returns a JSON value as text. A string has no quotes.
func plainJSON(raw json.RawMessage) string {
	var s string
	if len(raw) > 0 && raw[0] == '"' && json.Unmarshal(raw, &s) == nil {
		return s
	}
	return string(raw)
}
