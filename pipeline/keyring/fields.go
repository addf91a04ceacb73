package keyring

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr/within"
	"millrace/pipeline/keyformat"
	"millrace/pipeline/projector/query"
	"millrace/pipeline/seal"
	"millrace/pipeline/topology"
)

// Fields locates the encrypted fields of a schema, and the field with the id of
// their data subject. It is immutable and safe for concurrent use.
type Fields struct {
	layout      *codec.Layout
	subjectPath string
	subject     within.Field // the subject's id
	slot        int          // of the leaf with the subject's id
	fields      []sealedField
	shown       *codec.Node // the type of shown records: every encrypted field may be null
}

// sealedField is a field that is encrypted.
type sealedField struct {
	path string
	slot int
	node *codec.Node // string, bytes, or one of them or null
	tag  string
}

// maxSubject bounds the id of a subject, in bytes: it is part of a record key.
const maxSubject = 1024

// NewFields returns the encrypted fields of a schema, nil if it has none. An error
// means that the topology does not name the subject of the fields.
func NewFields(e *topology.Encryption, s *codec.Schema) (*Fields, error) {
	tagged, err := s.Tagged()
	if err != nil || len(tagged) == 0 {
		return nil, err
	}
	f := &Fields{subjectPath: e.Subject(s)}
	if f.subjectPath == "" {
		return nil, fmt.Errorf("the tagged fields of %s have no data subject: name its field under encryption in the topology", s.Name())
	}
	var fault *within.Fault
	if f.subject, fault = within.FieldAt(s, strings.Split(f.subjectPath, ".")); fault != nil {
		return nil, fault
	}
	if f.layout, err = codec.NewLayout(s, append(slices.Clone(tagged), f.subject.Leaf)); err != nil {
		return nil, err
	}
	f.slot = f.layout.Slot(f.subject.Leaf...)
	for _, path := range tagged {
		slot := f.layout.Slot(path...)
		node := f.layout.Node(slot)
		f.fields = append(f.fields, sealedField{strings.Join(path, "."), slot, node, node.Tag})
	}
	f.shown = shownNode(s.Root())
	return f, nil
}

// shownNode returns a copy of a type in which every tagged field may be null.
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

// Walk finds the fields in a body. The view is the argument of the other methods.
func (f *Fields) Walk(body []byte, v *pipeline.View) error { return f.layout.Walk(body, v) }

// SubjectPath returns the dotted path of the field with the subject's id.
func (f *Fields) SubjectPath() string { return f.subjectPath }

// Subject returns the id of the subject. An error is a [codec.PathError].
func (f *Fields) Subject(v *pipeline.View) (string, error) {
	enc, ok, err := f.subject.Get(v.Get(f.slot))
	var id []byte
	if err == nil && ok {
		id, err = keyformat.AppendField(nil, f.subject.Node, enc)
	}
	switch {
	case err != nil:
	case !ok:
		err = errors.New(f.subject.Missing())
	case len(id) > maxSubject:
		err = fmt.Errorf("it has %d bytes, and the id of a subject has at most %d", len(id), maxSubject)
	}
	if err != nil {
		return "", &codec.PathError{Path: f.subjectPath, Msg: "the subject of encrypted fields: " + err.Error()}
	}
	return string(id), nil
}

// Any reports whether a field has a content to encrypt.
func (f *Fields) Any(v *pipeline.View) bool {
	return slices.ContainsFunc(f.fields, func(one sealedField) bool {
		_, _, ok := one.content(v)
		return ok
	})
}

// content returns the content of the field without its length, and the bytes before
// the length: the branch of a nullable field. ok is false if the field is null.
func (one *sealedField) content(v *pipeline.View) (content, head []byte, ok bool) {
	enc := v.Get(one.slot)
	if _, null, _, nullable := one.node.Nullable(); nullable {
		branch, rest, err := codec.ReadLong(enc)
		if err != nil || branch == int64(null) {
			return nil, nil, false
		}
		head, enc = enc[:len(enc)-len(rest)], rest
	}
	content, _, err := codec.ReadText(enc) // bytes have the same encoding
	return content, head, err == nil       // the walk has checked the encoding
}

func (one *sealedField) isText() bool {
	n := one.node
	n = n.NotNull()
	return n.Kind == codec.String
}

// Seal replaces the fields in a view by their ciphertexts, under the key of the
// subject.
func (f *Fields) Seal(v *pipeline.View, subject string, key *seal.DataKey) {
	for _, one := range f.fields {
		content, head, ok := one.content(v)
		if !ok {
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

// The reasons for hiding a field, as the projector's API returns them.
const (
	hiddenErased   = "erased"   // the subject was forgotten
	hiddenNoKey    = "no_key"   // the key topic does not have the key
	hiddenNoKEK    = "no_kek"   // this process does not have the key-encryption key
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

// Open returns a body with its fields decrypted. A field that cannot be decrypted is
// null, and Hidden has the reason by its path. A field with an unencrypted content
// is unchanged: it was written before the field was tagged, is a default, or was written by
// another client than ours. It is in Plain, unless it is empty.
func (f *Fields) Open(body []byte, ring *seal.Ring) (query.Decrypted, error) {
	var v pipeline.View
	if err := f.layout.Walk(body, &v); err != nil {
		return query.Decrypted{}, err
	}
	subject, noSubject := f.Subject(&v)
	out := query.Decrypted{Type: f.shown}
	for _, one := range f.fields {
		content, head, ok := one.content(&v)
		if !ok {
			continue
		}
		_, null, _, nullable := one.node.Nullable()
		if !nullable {
			head = codec.AppendLong(nil, 1) // the branch in the union of the shown type
		}
		content, sealed, err := one.open(content, ring, subject, noSubject)
		if err == nil && !sealed && len(content) > 0 {
			out.Plain = append(out.Plain, one.path)
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

// open decrypts the content of a field, unless it is unencrypted. noSubject is the
// error if the record has no valid subject.
func (one *sealedField) open(content []byte, ring *seal.Ring, subject string, noSubject error) (plain []byte, sealed bool, err error) {
	parse := seal.ParseBytes
	if one.isText() {
		parse = seal.ParseText
	}
	box, sealed, err := parse(content)
	if sealed {
		if err := errors.Join(err, noSubject); err != nil {
			return nil, true, err
		}
		key, err := ring.Find(subject, box.KeyID)
		if err != nil {
			return nil, true, err
		}
		if content, err = key.Open(box, seal.Place{Subject: subject, Field: one.tag}); err != nil {
			return nil, true, err
		}
	} else if err != nil {
		return nil, false, err
	}
	if one.isText() && !utf8.Valid(content) {
		return nil, sealed, seal.ErrTampered
	}
	return content, sealed, nil
}
