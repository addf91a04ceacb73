package keyformat

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr/within"
)

// A Maker makes the keys of records from fields of their events. It is immutable after
// [Maker.Bind] and safe for concurrent use.
type Maker struct {
	format Format
	topic  string // for messages
	parts  []part // one, unless the keys are Avro records
}

// A part is a field whose value is the key, or a field of the key.
type part struct {
	path []string
	at   within.Field
	slot int         // of the leaf, in the layout of Bind
	node *codec.Node // the type of the field; the other type if it may be null
	null int64       // the branch of null; -1 if the field cannot be null

	// Of an Avro key:
	to     *codec.Node // the type in the key; the other type if it may be null
	toNull int64       // the branch of null; -1 if it cannot be null
	branch int64       // the other branch
	copied bool        // both types have the same bytes
}

// NewMaker returns a maker of the keys of a topic from events with a schema. path is the
// field that is the key. If the keys are Avro records with several fields, each is the
// field with its name in the record at path; or next to path; or of the event. An error
// says why no event with the schema has a key.
func NewMaker(f Format, topic string, s *codec.Schema, path []string) (*Maker, error) {
	m := &Maker{format: f, topic: topic}
	at, fault := within.FieldAt(s, path)
	if fault != nil {
		return nil, fault
	}
	if f.Kind != Avro {
		return m, m.add(s, path, at, nil)
	}
	if f.Schema == nil {
		return nil, fmt.Errorf("%s has Avro keys without a schema: set key_schema on the topic", topic)
	}
	k := f.Schema.Root()
	switch {
	case k.Kind != codec.Record:
		return m, m.add(s, path, at, k)
	case at.Node.NotNull().Kind == codec.Record:
		return m, m.addRecord(s, k, path)
	case len(k.Fields) == 1 && k.Fields[0].Type.Kind != codec.Record:
		return m, m.add(s, path, at, k.Fields[0].Type)
	}
	return m, m.addRecord(s, k, path[:len(path)-1], nil)
}

// addRecord adds the fields of a record of the key. Each comes from the first of the
// records at the paths that has a field of the name.
func (m *Maker) addRecord(s *codec.Schema, k *codec.Node, from ...[]string) error {
	for i := range k.Fields {
		want := &k.Fields[i]
		var path []string
		var at within.Field
		for _, record := range from {
			candidate := append(slices.Clone(record), want.Name)
			if found, fault := within.FieldAt(s, candidate); fault == nil {
				path, at = candidate, found
				break
			}
		}
		var err error
		switch {
		case path == nil:
			return fmt.Errorf("the event has no field %s, which is a field of %s, the key_schema of %s: add it to the event, or name the record with the key's fields", want.Name, m.format.Schema.Name(), m.topic)
		case want.Type.Kind == codec.Record && at.Node.NotNull().Kind == codec.Record:
			err = m.addRecord(s, want.Type, path)
		default:
			err = m.add(s, path, at, want.Type)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// add adds a field of the event. to is its type in an Avro key; nil for other formats.
func (m *Maker) add(s *codec.Schema, path []string, field within.Field, to *codec.Node) error {
	at, n := strings.Join(path, "."), field.Node
	if n.NotNull().Kind == codec.Record {
		return fmt.Errorf("%s of %s is a record: name one of its fields", at, s.Name())
	}
	p := part{path: path, at: field, node: n, null: -1, to: to, toNull: -1}
	if other, null, _, ok := n.Nullable(); ok {
		p.node, p.null = other, int64(null)
	}
	if n.Tag != "" || p.node.Tag != "" {
		return errors.New("the field is encrypted, and a record key must be readable")
	}
	if to == nil {
		m.parts = append(m.parts, p)
		if kinds := m.format.kinds(p.node); kinds != "" {
			return fmt.Errorf("a record key%s is %s; this is %s", m.what(), kinds, n)
		}
		return nil
	}
	if other, null, branch, ok := to.Nullable(); ok {
		p.to, p.toNull, p.branch = other, int64(null), int64(branch)
	}
	p.copied = codec.Same(p.node, p.to)
	if !p.copied && !converts(p.node, p.to) {
		return fmt.Errorf("%s is %s, which cannot become %s as the key_schema of %s (%s) has it", at, n, to, m.topic, m.format.Schema.Name())
	}
	m.parts = append(m.parts, p)
	return nil
}

// what names the format in messages, unless it is Text.
func (m *Maker) what() string {
	if m.format.IsText() {
		return ""
	}
	return fmt.Sprintf(" on %s, which has key_format %s,", m.topic, m.format)
}

// kinds returns the types that can be a key of the format, which is not Avro, in words; ""
// if n is one of them.
func (f Format) kinds(n *codec.Node) string {
	integer := n.Kind == codec.Int || n.Kind == codec.Long
	switch f.Kind {
	case UUID:
		if n.Kind == codec.String || n.Kind == codec.Bytes && n.Logical == "" || n.Kind == codec.Fixed && n.Size == 16 && (n.Logical == "" || n.Logical == "uuid") {
			return ""
		}
		return "a string, bytes, or a fixed of 16 bytes"
	case Bytes:
		if n.Kind == codec.String || n.Kind == codec.Bytes || n.Kind == codec.Fixed {
			return ""
		}
		return "bytes, a fixed, or a string in hexadecimal"
	}
	if n.Kind == codec.String || integer {
		return ""
	}
	return "a string, an int or a long"
}

// converts reports whether some values of a field can be a value of another type in an Avro
// key. A number and its text are the same, a UUID and its text, and bytes and a fixed.
func converts(n, to *codec.Node) bool {
	if n.Logical == "decimal" || to.Logical != "" && to.Logical != "uuid" {
		return false
	}
	text, number, raw := n.Kind == codec.String, n.Kind == codec.Int || n.Kind == codec.Long, n.Kind == codec.Bytes || n.Kind == codec.Fixed
	switch to.Kind {
	case codec.String:
		return text || number && to.Logical == "" || isUUID(n)
	case codec.Int, codec.Long:
		return text || number
	case codec.Bytes:
		return raw
	case codec.Fixed:
		return text && isUUID(to) || n.Kind == codec.Bytes || n.Kind == codec.Fixed && n.Size == to.Size
	case codec.Enum:
		return text
	}
	return false
}

// isUUID reports whether values of the type are the 16 bytes of a UUID.
func isUUID(n *codec.Node) bool {
	return n.Kind == codec.Fixed && n.Size == 16 && n.Logical == "uuid"
}

// Paths returns the paths of the leaves that hold the fields, for [codec.NewLayout].
func (m *Maker) Paths() [][]string {
	var out [][]string
	for i := range m.parts {
		out = append(out, m.parts[i].at.Leaf)
	}
	return out
}

// Bind sets the layout of the views of Append. It has the fields of Paths.
func (m *Maker) Bind(l *codec.Layout) {
	for i := range m.parts {
		m.parts[i].slot = l.Slot(m.parts[i].at.Leaf...)
	}
}

// Append appends the key of an event. id is the id of the schema of Avro keys in the
// registry. An error is a [*codec.PathError] with the field that is no key of the format.
func (m *Maker) Append(dst []byte, id int, v *pipeline.View) ([]byte, error) {
	out := dst
	if m.format.Kind == Avro {
		out = codec.AppendFrame(out, id)
	}
	body := len(out)
	for i := range m.parts {
		p := &m.parts[i]
		var err error
		if p.to == nil {
			out, err = m.plain(out, p, v.Get(p.slot))
		} else {
			out, err = m.avro(out, p, v.Get(p.slot))
		}
		if err != nil {
			return dst, &codec.PathError{Path: strings.Join(p.path, "."), Msg: err.Error()}
		}
	}
	switch {
	case m.format.IsText() && out[body] == 0:
		return dst, &codec.PathError{Path: strings.Join(m.parts[0].path, "."), Msg: fmt.Sprintf("%q begins with a zero byte, and a key of %s is text: send another id, or set key_format on the topic", out[body:], m.topic)}
	case m.format.Kind == Avro:
		if err := m.format.Schema.CheckWritten(out[body:]); err != nil {
			return dst, &codec.PathError{Path: strings.Join(m.parts[0].path, "."), Msg: err.Error()}
		}
	}
	return out, nil
}

var (
	errNull  = errors.New("expected the record key, found null")
	errEmpty = errors.New("expected the record key, found an empty text")
)

// content returns the value of a field without the branch of null. ok is false if it is
// null, or if a record around it is.
func (p *part) content(leaf []byte) (content []byte, ok bool, err error) {
	enc, ok, err := p.at.Get(leaf)
	if p.null < 0 || !ok || err != nil {
		return enc, ok, err
	}
	branch, rest, err := codec.ReadLong(enc)
	return rest, branch != p.null, err
}

// missing returns why an event without content has no key.
func (p *part) missing(leaf []byte) error {
	if _, ok, _ := p.at.Get(leaf); ok {
		return errNull
	}
	return fmt.Errorf("expected the record key, but %s", p.at.Missing())
}

// plain appends a key that is not Avro.
func (m *Maker) plain(dst []byte, p *part, leaf []byte) ([]byte, error) {
	enc, ok, err := p.content(leaf)
	if err != nil {
		return dst, err
	}
	if !ok {
		return dst, p.missing(leaf)
	}
	switch p.node.Kind {
	case codec.String:
		text, _, err := codec.ReadText(enc)
		switch {
		case err != nil:
			return dst, err
		case len(text) == 0:
			return dst, errEmpty
		case m.format.IsText():
			return append(dst, text...), nil
		}
		out, err := m.format.AppendKey(dst, text)
		if err != nil {
			return dst, fmt.Errorf("%q is not a key of %s, which has key_format %s: send %s", text, m.topic, m.format, m.format.example())
		}
		return out, nil
	case codec.Bytes, codec.Fixed:
		raw, err := rawBytes(p.node, enc)
		if err == nil && !m.format.fits(raw) {
			err = fmt.Errorf("%d bytes are not a key of %s, which has key_format %s: send %s", len(raw), m.topic, m.format, m.format.example())
		}
		return append(dst, raw...), err
	}
	v, _, err := codec.ReadLong(enc)
	switch {
	case err != nil:
		return dst, err
	case m.format.Kind == Long:
		return binary.BigEndian.AppendUint64(dst, uint64(v)), nil
	case m.format.Kind == Int && v != int64(int32(v)):
		return dst, fmt.Errorf("%d is not a key of %s, which has key_format int: send %s", v, m.topic, m.format.example())
	case m.format.Kind == Int:
		return binary.BigEndian.AppendUint32(dst, uint32(v)), nil
	}
	return strconv.AppendInt(dst, v, 10), nil
}

// example says what a key of the format, which is not Text nor Avro, looks like.
func (f Format) example() string {
	switch f.Kind {
	case Long:
		return "a whole number of 64 bits"
	case Int:
		return "a whole number of 32 bits"
	case UUID:
		return "a UUID such as 123e4567-e89b-12d3-a456-426614174000, or its 16 bytes"
	}
	return "hexadecimal text such as 00ff, or bytes that are not empty"
}

// rawBytes returns the content of bytes or a fixed.
func rawBytes(n *codec.Node, enc []byte) ([]byte, error) {
	if n.Kind == codec.Fixed {
		return enc[:n.Size], nil
	}
	raw, _, err := codec.ReadText(enc) // bytes have the same encoding
	return raw, err
}

// avro appends the value of a field in an Avro key.
func (m *Maker) avro(dst []byte, p *part, leaf []byte) ([]byte, error) {
	enc, ok, err := p.content(leaf)
	switch {
	case err != nil:
		return dst, err
	case !ok && (p.toNull < 0 || len(m.parts) == 1):
		return dst, p.missing(leaf)
	case !ok:
		return codec.AppendLong(dst, p.toNull), nil
	}
	if p.toNull >= 0 {
		dst = codec.AppendLong(dst, p.branch)
	}
	if p.node.Kind == codec.String && len(m.parts) == 1 {
		if text, _, err := codec.ReadText(enc); err == nil && len(text) == 0 {
			return dst, errEmpty
		}
	}
	if p.copied {
		return append(dst, enc...), nil
	}
	switch p.node.Kind {
	case codec.String:
		text, _, err := codec.ReadText(enc)
		if err != nil {
			return dst, err
		}
		out, ok := appendTextAs(dst, p.to, string(text))
		if !ok {
			return dst, fmt.Errorf("%q cannot become %s, as the key_schema of %s (%s) has it", text, p.to, m.topic, m.format.Schema.Name())
		}
		return out, nil
	case codec.Bytes, codec.Fixed:
		raw, err := rawBytes(p.node, enc)
		if err != nil {
			return dst, err
		}
		out, ok := appendBytesAs(dst, p.to, raw)
		if !ok {
			return dst, fmt.Errorf("%d bytes cannot become %s, as the key_schema of %s (%s) has it", len(raw), p.to, m.topic, m.format.Schema.Name())
		}
		return out, nil
	}
	v, _, err := codec.ReadLong(enc)
	switch {
	case err != nil:
		return dst, err
	case p.to.Kind == codec.String:
		return codec.AppendString(dst, strconv.FormatInt(v, 10)), nil
	case p.to.Kind == codec.Int && v != int64(int32(v)):
		return dst, fmt.Errorf("%d does not fit an int, as the key_schema of %s (%s) has it", v, m.topic, m.format.Schema.Name())
	}
	return codec.AppendLong(dst, v), nil
}

// appendTextAs appends a text as a value of a type. ok is false if it is not the text of
// one.
func appendTextAs(dst []byte, to *codec.Node, text string) (out []byte, ok bool) {
	switch to.Kind {
	case codec.String:
		if to.Logical == "uuid" {
			if _, ok := parseUUID(text); !ok {
				return dst, false
			}
		}
		return codec.AppendString(dst, text), true
	case codec.Int, codec.Long:
		bits := 64
		if to.Kind == codec.Int {
			bits = 32
		}
		v, ok := parseInteger(text, bits)
		return codec.AppendLong(dst, v), ok
	case codec.Enum:
		i := slices.Index(to.Symbols, text)
		return codec.AppendLong(dst, int64(i)), i >= 0
	}
	u, ok := parseUUID(text)
	return append(dst, u...), ok
}

// appendBytesAs appends bytes as a value of a type, as text if they are a UUID. ok is false
// if they are not one.
func appendBytesAs(dst []byte, to *codec.Node, raw []byte) (out []byte, ok bool) {
	switch to.Kind {
	case codec.Bytes:
		return codec.AppendBytes(dst, raw), true
	case codec.Fixed:
		return append(dst, raw...), len(raw) == to.Size
	}
	return codec.AppendBytes(dst, Format{Kind: UUID}.appendText(nil, raw)), true
}

// parseInteger reads the text form of a number. Only one text is a number's: 007 is
// another id than 7, and must not become the same key.
func parseInteger(text string, bits int) (int64, bool) {
	v, err := strconv.ParseInt(text, 10, bits)
	return v, err == nil && strconv.FormatInt(v, 10) == text
}

// parseUUID reads the text form of a UUID, in lower or upper case.
func parseUUID(text string) ([]byte, bool) {
	if len(text) != 36 || text[8] != '-' || text[13] != '-' || text[18] != '-' || text[23] != '-' {
		return nil, false
	}
	u, err := hex.DecodeString(strings.ReplaceAll(text, "-", ""))
	return u, err == nil && len(u) == 16
}

// AppendField appends the text of a string, an int or a long, which may be nullable: a
// text as it is, a number in decimal. A null or an empty text is an error. The id of a data
// subject has this form, as a key of the format Text has.
func AppendField(dst []byte, n *codec.Node, enc []byte) ([]byte, error) {
	p := part{node: n, null: -1}
	if other, null, _, ok := n.Nullable(); ok {
		p.node, p.null = other, int64(null)
	}
	var text Maker
	return text.plain(dst, &p, enc)
}
