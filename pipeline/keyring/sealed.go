package keyring

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/projector/query"
	"millrace/pipeline/seal"
	"millrace/pipeline/topology"
)

// Fields are the fields of a record that are encrypted, and the one that says
// whose they are. It is never changed and safe for concurrent use.
type Fields struct {
	Layout  *codec.Layout
	Path    string // of the subject
	subject int    // its slot
	fields  []sealedField
	shown   *codec.Node // the record as it is shown: where a field cannot be read, there is null
}

type sealedField struct {
	path string
	slot int
	node *codec.Node // a string or bytes, or null beside that
	tag  string
}

// maxSubject bounds the id of a subject: it is part of a record's key.
const maxSubject = 1024

// NewFields returns those of a record, nil if it has none.
func NewFields(e *topology.Encryption, s *codec.Schema) (*Fields, error) {
	tagged, err := s.Tagged()
	if err != nil || len(tagged) == 0 {
		return nil, err
	}
	f := &Fields{Path: e.Subject(s)}
	if f.Path == "" {
		return nil, fmt.Errorf("nothing says whose the tagged fields of %s are: encryption in the topology", s.Name())
	}
	subject := strings.Split(f.Path, ".")
	if f.Layout, err = codec.NewLayout(s, append(slices.Clone(tagged), subject)); err != nil {
		return nil, err
	}
	f.subject = f.Layout.Slot(subject...)
	for _, path := range tagged {
		slot := f.Layout.Slot(path...)
		node := f.Layout.Node(slot)
		f.fields = append(f.fields, sealedField{strings.Join(path, "."), slot, node, node.Tag})
	}
	f.shown = shownNode(s.Root())
	return f, nil
}

// shownNode returns a record of which each tagged field may be null.
func shownNode(n *codec.Node) *codec.Node {
	switch {
	case n.Kind == codec.Record:
		out := *n
		out.Fields = slices.Clone(n.Fields)
		for i := range out.Fields {
			out.Fields[i].Type = shownNode(n.Fields[i].Type)
		}
		return &out
	case n.Tag != "" && n.Kind != codec.Union:
		return &codec.Node{Kind: codec.Union, Branches: []*codec.Node{{Kind: codec.Null}, n}}
	}
	return n
}

// Subject returns the subject of a body that the layout has walked over.
func (f *Fields) Subject(v *pipeline.View) (string, error) {
	id, err := AppendKey(nil, f.Layout.Node(f.subject), v.Get(f.subject))
	if err == nil && len(id) > maxSubject {
		err = fmt.Errorf("it has %d bytes, and the id of a subject at most %d", len(id), maxSubject)
	}
	if err != nil {
		return "", &codec.PathError{Path: f.Path, Msg: "the subject of encrypted fields: " + err.Error()}
	}
	return string(id), nil
}

// Any reports whether there is anything to encrypt.
func (f *Fields) Any(v *pipeline.View) bool {
	return slices.ContainsFunc(f.fields, func(one sealedField) bool {
		_, _, there := one.content(v)
		return there
	})
}

// content returns what stands in the field, without its length, and what is before
// that; there is none if it is null.
func (one *sealedField) content(v *pipeline.View) (content, head []byte, there bool) {
	enc := v.Get(one.slot)
	if _, null, _, ok := one.node.Nullable(); ok {
		branch, rest, err := codec.ReadLong(enc)
		if err != nil || branch == int64(null) {
			return nil, nil, false
		}
		head, enc = enc[:len(enc)-len(rest)], rest
	}
	content, _, err := codec.ReadText(enc) // bytes are encoded alike
	return content, head, err == nil       // the walk has seen to that
}

func (one *sealedField) isText() bool {
	n := one.node
	if other, _, _, ok := n.Nullable(); ok {
		n = other
	}
	return n.Kind == codec.String
}

// Seal sets the fields of a view to their ciphertexts.
func (f *Fields) Seal(v *pipeline.View, subject string, key *seal.DataKey) {
	for _, one := range f.fields {
		content, head, there := one.content(v)
		if !there {
			continue
		}
		at := seal.Place{Subject: subject, Field: one.tag}
		var box []byte
		if one.isText() {
			box = key.AppendText(nil, content, at)
		} else {
			box = key.AppendBytes(nil, content, at)
		}
		v.Set(one.slot, codec.AppendBytes(slices.Clone(head), box))
	}
}

// Why an encrypted field is not shown: words of the API.
const (
	hiddenErased   = "erased"   // its subject was forgotten
	hiddenNoKey    = "no_key"   // the key topic does not have the key
	hiddenNoKEK    = "no_kek"   // this worker does not have what the key is wrapped by
	hiddenTampered = "tampered" // the ciphertext was changed, or belongs to another subject or field
)

func hiddenBy(err error) string {
	for _, known := range []struct {
		err  error
		word string
	}{{seal.ErrErased, hiddenErased}, {seal.ErrNoKey, hiddenNoKey}, {seal.ErrNoKEK, hiddenNoKEK}} {
		if errors.Is(err, known.err) {
			return known.word
		}
	}
	return hiddenTampered
}

// Open returns a body as it is shown, and by path what is not shown of it, and
// why. What stands unencrypted in a field is shown as it stands: it was written
// before the field was tagged, or is a default.
func (f *Fields) Open(body []byte, ring *seal.Ring) (query.Shown, error) {
	var v pipeline.View
	if err := f.Layout.Walk(body, &v); err != nil {
		return query.Shown{}, err
	}
	subject, noSubject := f.Subject(&v)
	out := query.Shown{Type: f.shown}
	for _, one := range f.fields {
		content, head, there := one.content(&v)
		if !there {
			continue
		}
		_, null, _, nullable := one.node.Nullable()
		if !nullable {
			head = codec.AppendLong(nil, 1) // of the union that it is shown as
		}
		parse := seal.ParseBytes
		if one.isText() {
			parse = seal.ParseText
		}
		box, sealed, err := parse(content)
		if sealed {
			if content, err = nil, errors.Join(err, noSubject); err == nil {
				var key *seal.DataKey
				if key, err = ring.Find(subject, box.KeyID); err == nil {
					content, err = key.Open(box, seal.Place{Subject: subject, Field: one.tag})
				}
			}
		}
		if err == nil && one.isText() && !utf8.Valid(content) {
			err = seal.ErrTampered
		}
		if err != nil {
			if out.Hidden == nil {
				out.Hidden = map[string]string{}
			}
			out.Hidden[one.path] = hiddenBy(err)
			v.Set(one.slot, codec.AppendLong(nil, int64(null)))
			continue
		}
		v.Set(one.slot, codec.AppendBytes(slices.Clone(head), content))
	}
	out.Body = v.Append(nil)
	return out, nil
}
