package codec

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// PII is the schema property that tags a field as personal data. Its value is true, or
// a name: the ciphertexts of the field are bound to this name instead of the field's
// own. Fields whose values are copied to each other need the same name.
const PII = "millrace.pii"

// tag returns the name that the field's ciphertexts are bound to, or "" if it is not
// tagged. If the property is invalid, fault describes the error.
func (f *Field) tag() (tag, fault string) {
	switch given := f.pii.(type) {
	case nil:
		return "", ""
	case bool:
		if !given {
			return "", ""
		}
		tag = f.Name
	case string:
		tag = given
	}
	if tag == "" {
		return "", fmt.Sprintf("%s must be true or a name, not %v", PII, f.pii)
	}
	n := f.Type
	n = n.NotNull()
	if n.Kind != String && n.Kind != Bytes || n.Logical != "" {
		return "", fmt.Sprintf("it is %s: only string and bytes without a logical type, or a union of one of them and null, can be encrypted", f.Type)
	}
	return tag, ""
}

// A TagError is the error for a tagged field that cannot be encrypted.
type TagError struct {
	Path string // dotted
	Msg  string
}

func (e *TagError) Error() string {
	return fmt.Sprintf("%s is tagged %s, but %s", e.Path, PII, e.Msg)
}

// Tagged returns the paths of the fields that are tagged with [PII]. An error is a
// [*TagError]: the tag is invalid, or it is on a type that cannot be encrypted, or
// within an array, a map or a union, where fields are not encrypted.
func (s *Schema) Tagged() (paths [][]string, err error) {
	type place struct {
		record *Node
		inside bool
	}
	seen := map[place]bool{}
	var visit func(n *Node, at []string, inside bool) error
	visit = func(n *Node, at []string, inside bool) error {
		switch n.Kind {
		case Array, Map:
			return visit(n.Elem, append(at[:len(at)-1:len(at)-1], at[len(at)-1]+"[]"), true)
		case Union:
			for _, b := range n.Branches {
				if err := visit(b, at, true); err != nil {
					return err
				}
			}
		case Record:
			if seen[place{n, inside}] && inside {
				return nil
			}
			if len(at) > maxWalkDepth {
				return errDeepTags
			}
			seen[place{n, inside}] = true
			for i := range n.Fields {
				f := &n.Fields[i]
				path := append(slices.Clone(at), f.Name)
				tag, fault := f.tag()
				if fault == "" && tag != "" && inside {
					fault = "it is within an array, a map or a union, and only fields of plain records are encrypted"
				}
				if fault != "" {
					return &TagError{strings.Join(path, "."), fault}
				}
				if tag != "" {
					paths = append(paths, path)
				} else if err := visit(f.Type, path, inside); err != nil {
					return err
				}
			}
		}
		return nil
	}
	if s.root.Kind != Record {
		return nil, nil
	}
	if err = visit(s.root, nil, false); errors.Is(err, errDeepTags) {
		return nil, nil // NewLayout refuses such a schema
	}
	return paths, err
}

var errDeepTags = errors.New("records nested too deep, or within themselves")
