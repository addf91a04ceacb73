package codec

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"time"
)

// A JSON is a JSON text, split into tokens. Its parts are found and encoded without a
// tree of Go values. [JSON.Parse] reuses its memory. It belongs to one goroutine.
type JSON struct {
	text   []byte // the parsed text and the values of Set, each followed by a zero byte
	tokens []token
	sorted []int // scratch to sort the keys of maps
}

// token is one value or one key. It is followed by the tokens of an array's items, or
// of an object's keys and values in turn.
type token struct {
	kind       byte // the first byte: { [ " t f n, or 0 for a number
	escaped    bool // a string that contains escapes
	start, end int  // in the text; of a string, without the quotes
	size       int  // number of tokens, this one and its descendants
	members    int  // number of members of an object
}

// maxNested is the maximum depth of arrays and objects, the same as in encoding/json.
const maxNested = 10_000

// Parse splits a text into tokens. It accepts the same texts as encoding/json, but only
// Unicode: see [CheckJSON]. An error gives the column of the fault.
func (j *JSON) Parse(text []byte) error {
	j.text = append(append(j.text[:0], text...), 0)
	j.tokens = j.tokens[:0]
	if !validUTF8(text) {
		return CheckJSON(text)
	}
	if end, ok := j.value(j.space(0), 0); !ok || j.space(end) != len(text) {
		return syntaxError(text)
	}
	return nil
}

// syntaxError returns the error for a text that Parse refuses.
func syntaxError(text []byte) error {
	if err := CheckJSON(text); err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(text))
	var value json.RawMessage
	err := d.Decode(&value)
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &syntax):
		return fmt.Errorf("column %d: %w", syntax.Offset, err)
	case errors.Is(err, io.ErrUnexpectedEOF), err == io.EOF:
		return errors.New("the JSON ends too early")
	case err != nil:
		return err
	}
	more := bytes.TrimLeft(text[d.InputOffset():], " \t\r\n")
	return fmt.Errorf("column %d: more text after the end of the JSON", len(text)-len(more)+1)
}

// The functions of the parser take the start of an element and return its end; they
// report whether it is valid. The zero byte after the text is never valid JSON, so it
// ends a truncated element without bounds checks.

func (j *JSON) space(i int) int {
	for j.text[i] == ' ' || j.text[i] == '\n' || j.text[i] == '\r' || j.text[i] == '\t' {
		i++
	}
	return i
}

func (j *JSON) value(i, depth int) (int, bool) {
	at := len(j.tokens)
	switch c := j.text[i]; c {
	case '"':
		return j.string(i)
	case '{', '[':
		if depth == maxNested {
			return i, false
		}
		j.tokens = append(j.tokens, token{kind: c, start: i})
		end, members, ok := j.items(i, depth)
		t := &j.tokens[at]
		t.end, t.size, t.members = end, len(j.tokens)-at, members
		return end, ok
	case 't':
		return j.literal(i, "true")
	case 'f':
		return j.literal(i, "false")
	case 'n':
		return j.literal(i, "null")
	}
	end, ok := j.number(i)
	j.tokens = append(j.tokens, token{start: i, end: end, size: 1})
	return end, ok
}

// items parses the content of an object or an array.
func (j *JSON) items(i, depth int) (end, members int, ok bool) {
	object := j.text[i] == '{'
	shut := j.text[i] + 2 // '}' is '{'+2, and ']' is '['+2
	if i = j.space(i + 1); j.text[i] == shut {
		return i + 1, 0, true
	}
	for {
		if object {
			if i, ok = j.string(i); !ok {
				return i, members, false
			}
			if i = j.space(i); j.text[i] != ':' {
				return i, members, false
			}
			members++
			i = j.space(i + 1)
		}
		if i, ok = j.value(i, depth+1); !ok {
			return i, members, false
		}
		switch i = j.space(i); j.text[i] {
		case ',':
			i = j.space(i + 1)
		case shut:
			return i + 1, members, true
		default:
			return i, members, false
		}
	}
}

func (j *JSON) string(i int) (int, bool) {
	if j.text[i] != '"' {
		return i, false
	}
	t := token{kind: '"', start: i + 1, size: 1}
	for i++; ; i++ {
		switch c := j.text[i]; {
		case c == '"':
			t.end = i
			j.tokens = append(j.tokens, t)
			return i + 1, true
		case c < ' ':
			return i, false
		case c == '\\':
			t.escaped = true
			var ok bool
			if i, ok = j.escape(i + 1); !ok {
				return i, false
			}
		}
	}
}

// escape checks an escape in a string; i is the position after the backslash. It returns
// the position of the last byte of the escape.
func (j *JSON) escape(i int) (int, bool) {
	switch j.text[i] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return i, true
	case 'u':
		for n := 1; n <= 4; n++ {
			if !isHex(j.text[i+n]) {
				return i, false
			}
		}
		size, ok := escape(j.text[i-1:])
		return i - 2 + size, ok
	}
	return i, false
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

func (j *JSON) literal(i int, word string) (int, bool) {
	end := i + len(word)
	if !bytes.HasPrefix(j.text[i:], []byte(word)) {
		return i, false
	}
	j.tokens = append(j.tokens, token{kind: word[0], start: i, end: end, size: 1})
	return end, true
}

func (j *JSON) number(i int) (int, bool) {
	if j.text[i] == '-' {
		i++
	}
	var ok bool
	if j.text[i] == '0' {
		i++
	} else if i, ok = j.digits(i); !ok {
		return i, false
	}
	if j.text[i] == '.' {
		if i, ok = j.digits(i + 1); !ok {
			return i, false
		}
	}
	if j.text[i] == 'e' || j.text[i] == 'E' {
		if i++; j.text[i] == '+' || j.text[i] == '-' {
			i++
		}
		return j.digits(i)
	}
	return i, true
}

func (j *JSON) digits(i int) (int, bool) {
	start := i
	for '0' <= j.text[i] && j.text[i] <= '9' {
		i++
	}
	return i, i > start
}

// IsObject reports whether the value is an object.
func (j *JSON) IsObject() bool { return j.tokens[0].kind == '{' }

// member returns the index of the value token of the object's first member of that
// name, or 0.
func (j *JSON) member(name string) int {
	for i := 1; i < j.tokens[0].size; i += 1 + j.tokens[i+1].size {
		if j.is(&j.tokens[i], name) {
			return i + 1
		}
	}
	return 0
}

// is reports whether a key token is the name.
func (j *JSON) is(t *token, name string) bool {
	if t.escaped {
		return j.unquote(t) == name
	}
	return string(j.text[t.start:t.end]) == name
}

// Has reports whether the object has a member of that name.
func (j *JSON) Has(name string) bool { return j.member(name) != 0 }

// Text returns the object's member of that name, if it is a string. The bytes are valid
// until the next Parse or Set.
func (j *JSON) Text(name string) ([]byte, bool) {
	i := j.member(name)
	if i == 0 || j.tokens[i].kind != '"' {
		return nil, false
	}
	if t := &j.tokens[i]; t.escaped {
		return []byte(j.unquote(t)), true
	}
	return j.text[j.tokens[i].start:j.tokens[i].end], true
}

// Set sets the object's member of that name to a value in JSON; it adds the member if it
// does not exist. Set panics if the value is not JSON, or if j is not an object.
func (j *JSON) Set(name, value string) {
	if !j.IsObject() {
		panic("codec: Set on a value that is not an object")
	}
	at := j.member(name)
	if at == 0 {
		start := len(j.text)
		j.text = append(append(j.text, name...), 0)
		j.tokens = append(j.tokens, token{kind: '"', start: start, end: start + len(name), size: 1})
		j.tokens[0].members++
	}
	last, start := len(j.tokens), len(j.text)
	j.text = append(append(j.text, value...), 0)
	if end, ok := j.value(start, 1); !ok || end != len(j.text)-1 {
		panic("codec: Set to invalid JSON: " + value)
	}
	if at != 0 { // the new tokens replace the old ones
		added := slices.Clone(j.tokens[last:])
		j.tokens = slices.Replace(j.tokens[:last], at, at+j.tokens[at].size, added...)
	}
	j.tokens[0].size = len(j.tokens)
}

// AppendAvro appends the value as Avro, by the rules and with the errors of the function
// [AppendAvro]. In addition, a duplicate key in an object is an error.
func (j *JSON) AppendAvro(dst []byte, s *Schema) ([]byte, error) {
	out, err := j.append(dst, s.root, 0, 0)
	if err != nil {
		return out, err
	}
	return out, s.checkEncoded(out[len(dst):])
}

// append encodes token i. If the fast path (plain) does not apply, or there is an error,
// it builds the tree of Go values and leaves it to appendAvro.
func (j *JSON) append(dst []byte, n *Node, i, depth int) ([]byte, error) {
	if depth <= maxWalkDepth {
		out, ok, err := j.plain(dst, n, i, depth)
		if ok || err != nil {
			return out, err
		}
	}
	v, err := j.tree(i)
	if err != nil {
		return dst, err
	}
	return appendAvro(dst, n, v, depth, nil)
}

// plain encodes token i if it has a common form: no escapes, no tags of unions, no
// unusual numbers. It is not ok otherwise, and then the output is invalid.
func (j *JSON) plain(dst []byte, n *Node, i, depth int) (out []byte, ok bool, err error) {
	t := &j.tokens[i]
	text := j.text[t.start:t.end]
	switch n.Kind {
	case Null:
		return dst, t.kind == 'n', nil
	case Boolean:
		switch t.kind {
		case 't':
			return append(dst, 1), true, nil
		case 'f':
			return append(dst, 0), true, nil
		}
	case Int, Long:
		if v, ok := plainInteger(n, t, text); ok {
			return binary.AppendVarint(dst, v), true, nil
		}
	case Float:
		if f, ok := plainFloat(t, text, 32); ok {
			return binary.LittleEndian.AppendUint32(dst, math.Float32bits(float32(f))), true, nil
		}
	case Double:
		if f, ok := plainFloat(t, text, 64); ok {
			return binary.LittleEndian.AppendUint64(dst, math.Float64bits(f)), true, nil
		}
	case String:
		if t.kind == '"' && !t.escaped && (n.Logical != "uuid" || isUUID(text)) {
			return AppendBytes(dst, text), true, nil
		}
	case Enum:
		if t.kind == '"' && !t.escaped {
			for number, symbol := range n.Symbols {
				if string(text) == symbol {
					return AppendLong(dst, int64(number)), true, nil
				}
			}
		}
	case Array:
		if t.kind == '[' {
			dst, err = j.appendItems(dst, n, i, depth)
			return dst, true, err
		}
	case Map:
		if t.kind == '{' {
			return j.appendEntries(dst, n, i, depth)
		}
	case Record:
		if t.kind == '{' {
			return j.appendFields(dst, n, i, depth)
		}
	case Union:
		other, null, branch, nullable := n.Nullable()
		switch {
		case !nullable || depth == maxWalkDepth:
		case t.kind == 'n':
			return AppendLong(dst, int64(null)), true, nil
		default:
			return j.plain(AppendLong(dst, int64(branch)), other, i, depth+1)
		}
	}
	return dst, false, nil
}

// plainInteger returns the integer of a token: a number, or a timestamp in text.
func plainInteger(n *Node, t *token, text []byte) (int64, bool) {
	if t.kind == 0 {
		bits := 64
		if n.Kind == Int {
			bits = 32
		}
		v, err := strconv.ParseInt(string(text), 10, bits)
		return v, err == nil
	}
	if t.kind != '"' || t.escaped || n.Kind != Long || n.Logical != "timestamp-millis" && n.Logical != "timestamp-micros" {
		return 0, false
	}
	var at time.Time
	if at.UnmarshalText(text) != nil {
		return 0, false
	}
	v, err := fromTime(n, at, "")
	return v, err == nil
}

func plainFloat(t *token, text []byte, bits int) (float64, bool) {
	if t.kind != 0 {
		return 0, false
	}
	f, err := strconv.ParseFloat(string(text), bits)
	return f, err == nil
}

func (j *JSON) appendItems(dst []byte, n *Node, i, depth int) ([]byte, error) {
	end := i + j.tokens[i].size
	count := 0
	for at := i + 1; at < end; at += j.tokens[at].size {
		count++
	}
	if count > 0 {
		dst = AppendLong(dst, int64(count))
	}
	number := 0
	for at := i + 1; at < end; at += j.tokens[at].size {
		var err error
		if dst, err = j.append(dst, n.Elem, at, depth+1); err != nil {
			return dst, underIndex(number, err)
		}
		number++
	}
	return append(dst, 0), nil
}

// appendEntries encodes an object as a map, sorted by key: the same value always gives
// the same bytes. It is not ok (see plain) if a key has escapes or is a duplicate.
func (j *JSON) appendEntries(dst []byte, n *Node, i, depth int) (out []byte, ok bool, err error) {
	t := &j.tokens[i]
	if t.members == 0 {
		return append(dst, 0), true, nil
	}
	first := len(j.sorted) // not 0 within another map
	defer func() { j.sorted = j.sorted[:first] }()
	for at := i + 1; at < i+t.size; at += 1 + j.tokens[at+1].size {
		if j.tokens[at].escaped {
			return dst, false, nil
		}
		j.sorted = append(j.sorted, at)
	}
	last := len(j.sorted)
	slices.SortFunc(j.sorted[first:last], func(a, b int) int { return bytes.Compare(j.key(a), j.key(b)) })
	dst = AppendLong(dst, int64(t.members))
	for k := first; k < last; k++ {
		key := j.key(j.sorted[k])
		if k > first && bytes.Equal(key, j.key(j.sorted[k-1])) {
			return dst, false, nil
		}
		if dst, err = j.append(AppendBytes(dst, key), n.Elem, j.sorted[k]+1, depth+1); err != nil {
			return dst, true, underKey(string(key), err)
		}
	}
	return append(dst, 0), true, nil
}

func (j *JSON) key(i int) []byte { return j.text[j.tokens[i].start:j.tokens[i].end] }

// appendFields encodes an object as a record. It is not ok (see plain) if a key is not a
// field or a duplicate, or if a field without a default is missing.
func (j *JSON) appendFields(dst []byte, n *Node, i, depth int) (out []byte, ok bool, err error) {
	t := &j.tokens[i]
	if t.members > len(n.Fields) {
		return dst, false, nil
	}
	end := i + t.size
	known := 0
	at := i + 1 // next member to try: members are usually in the order of the fields
	for f := range n.Fields {
		field := &n.Fields[f]
		found := false
		for range t.members {
			if at == end {
				at = i + 1
			}
			key := at
			at += 1 + j.tokens[at+1].size
			if j.is(&j.tokens[key], field.Name) {
				found = true
				if dst, err = j.append(dst, field.Type, key+1, depth+1); err != nil {
					return dst, true, under(field.Name, err)
				}
				known++
				break
			}
		}
		if found {
			continue
		}
		if !field.HasDefault {
			return dst, false, nil
		}
		if dst, err = appendAvro(dst, field.Type, field.Default, depth+1, nil); err != nil {
			return dst, true, under(field.Name, err)
		}
	}
	return dst, known == t.members, nil
}

// tree returns the value of token i in the Go types of encoding/json with UseNumber.
func (j *JSON) tree(i int) (any, error) {
	t := &j.tokens[i]
	switch t.kind {
	case '{':
		m := make(map[string]any, t.members)
		for at := i + 1; at < i+t.size; at += 1 + j.tokens[at+1].size {
			key := j.unquote(&j.tokens[at])
			v, err := j.tree(at + 1)
			if _, twice := m[key]; twice && err == nil {
				err = &PathError{Msg: "duplicate key"}
			}
			if err != nil {
				return nil, underKey(key, err)
			}
			m[key] = v
		}
		return m, nil
	case '[':
		items := []any{}
		for at := i + 1; at < i+t.size; at += j.tokens[at].size {
			v, err := j.tree(at)
			if err != nil {
				return nil, underIndex(len(items), err)
			}
			items = append(items, v)
		}
		return items, nil
	case '"':
		return j.unquote(t), nil
	case 't', 'f':
		return t.kind == 't', nil
	case 'n':
		return nil, nil
	}
	return json.Number(j.text[t.start:t.end]), nil
}

// unquote returns the text of a string.
func (j *JSON) unquote(t *token) string {
	if !t.escaped {
		return string(j.text[t.start:t.end])
	}
	var s string
	if err := json.Unmarshal(j.text[t.start-1:t.end+1], &s); err != nil {
		panic(fmt.Sprintf("codec: a parsed string cannot be unquoted: %v", err))
	}
	return s
}
