package stage

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"millrace/pipeline"
	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
	"millrace/pipeline/expr/within"
	"millrace/pipeline/stage/hide"
)

// Mask is the stage that hides values.
func Mask() Kind {
	return Kind{
		Name: "mask",
		Doc:  "Hides field values by replacing them.",
		Params: []Param{
			{Name: "fields", Form: Texts, Required: true, Doc: "Maps the path of a field to the method that hides it. " +
				"In a path, [] stands for each item of an array or each entry of a map: data.items[].product_id, metadata[]. A single map entry is metadata.KEY. A path can lead through nullable records (after.email), and through unions into each type that has the rest of the path. " +
				"hash replaces a string with a digest of 64 hexadecimal digits, bytes with a digest of 32 bytes, and a UUID with a version 8 UUID. Equal values have equal digests. " +
				"keep_first N and keep_last N keep N characters of a string and replace each other character with *. A string of at most N characters is replaced completely. " +
				"redact replaces a nullable value with null, a string with ***, and any other value with zero, false or an empty value."},
			{Name: "key", Form: Word, Doc: "A secret, as ${VARIABLE}. Digests are HMAC-SHA-256 with this key. " +
				"Without a secret, anyone can find the value of a digest by hashing likely values, such as e-mail addresses. Set either key or salt."},
			{Name: "salt", Form: Word, Doc: "A secret, as ${VARIABLE}. Digests are SHA-256 of the salt followed by the value. Without key and salt, digests are SHA-256 of the value."},
		},
		Example: `on: [UserCreated]
fields: {data.email: hash, data.name: keep_first 1, metadata.card: keep_last 4, metadata.ip: redact}
key: ${MASK_KEY:-for this example only}`,
		New: newMask,
	}
}

type mask struct {
	edits     [][]leafEdit // by type; shared by the clones
	key, salt []byte

	// Owned by the clone: Process writes them.
	digester *hide.Digester
	values   [][]byte // the new values, by edit of the event's type
}

// A leafEdit is the edit of one leaf.
type leafEdit struct {
	path   []string
	fields [][]string // the paths of the edited fields below a union
	slot   int
	*edit
}

// An edit changes values of one schema node. Exactly one of hide, fields, elem, entries
// and branches is set. An edit does not change after newMask.
type edit struct {
	node     *codec.Node
	hide     hide.Hider  // hides the whole value
	fields   []*edit     // edits of the fields of a record; nil for an unchanged field
	elem     *edit       // edit of each item of an array or entry of a map
	entries  []entryEdit // edits of some entries of a map
	branches []*edit     // edits of the branches of a union; nil for an unchanged branch
	by       string      // the path that created the edit, for faults
}

type entryEdit struct {
	key []byte
	*edit
}

func newMask(in Input) (Built, []expr.Fault) {
	fields, _ := in.Args.Find("fields")
	key, keyed := in.Args.Find("key")
	salt, salted := in.Args.Find("salt")
	s := &mask{edits: make([][]leafEdit, len(in.Types)), key: []byte(key.Value.Text), salt: []byte(salt.Value.Text)}
	hashed := false
	var faults []expr.Fault
	if keyed && salted {
		faults = append(faults, fault(salt.Key, "keep key: digests with a key cannot be guessed either", "a mask takes key or salt, not both"))
	}
	if len(fields.Entries) == 0 {
		faults = append(faults, fault(fields.Key, "fields: {data.email: hash}", "a mask needs at least one field to hide"))
	}
	for _, given := range fields.Entries {
		m, err := hide.Parse(given.Value.Text)
		if err != nil {
			hint := ""
			if !m.Known() {
				hint = "use hash, redact, keep_first N or keep_last N"
			}
			faults = append(faults, fault(given.Value, hint, "%v", err))
			continue
		}
		hashed = hashed || m.Hashes()
		for i, t := range in.Types {
			if t.On {
				faults = append(faults, s.add(i, t, given, m)...)
			}
		}
	}
	switch {
	case keyed && !hashed:
		faults = append(faults, fault(key.Key, "", "key has no effect: no field uses hash"))
	case salted && !hashed:
		faults = append(faults, fault(salt.Key, "", "salt has no effect: no field uses hash"))
	}
	if len(faults) > 0 {
		return nil, faults
	}
	s.digester = hide.NewDigester(s.key, s.salt)
	return s, nil
}

// add adds the edit for one path to one event type.
func (s *mask) add(typ int, t Type, given Entry, m hide.Method) []expr.Fault {
	p := maskPath{source: given.Key, typ: t}
	leaf, steps := p.source.Text, ""
	if i := strings.Index(leaf, "[]"); i >= 0 {
		leaf, steps = leaf[:i], leaf[i:]
	}
	leaf, inner := cutLeaf(t.Schema.Root(), leaf)
	target, err := t.Env.Target(leaf)
	if err != nil {
		return expr.PlaceErrors(given.Key, t.Name, err)
	}
	if failed := p.apply(s.leaf(typ, target, inner), inner+steps, m); failed != nil {
		return []expr.Fault{*failed}
	}
	return nil
}

// cutLeaf cuts a path after the leaf: the rest are steps into a union or a map. A path
// without such a leaf stays whole.
func cutLeaf(record *codec.Node, path string) (leaf, steps string) {
	at := 0
	for {
		name, rest, more := strings.Cut(path[at:], ".")
		f := record.Field(name)
		if f == nil || !more {
			return path, ""
		}
		at += len(name)
		switch {
		case rest != "" && (f.Type.Kind == codec.Map || within.Leads(f.Type)):
			return path[:at], path[at:]
		case f.Type.Kind != codec.Record:
			return path, ""
		}
		record, at = f.Type, at+1
	}
}

// leaf returns the edit of a leaf, and creates it if necessary. inner is the path from the
// leaf to the field.
func (s *mask) leaf(typ int, target expr.Target, inner string) *edit {
	i := slices.IndexFunc(s.edits[typ], func(e leafEdit) bool { return slices.Equal(e.path, target.Path) })
	if i < 0 {
		i = len(s.edits[typ])
		s.edits[typ] = append(s.edits[typ], leafEdit{path: target.Path, edit: &edit{node: target.Node}})
	}
	e := &s.edits[typ][i]
	if inner != "" && target.Node.Kind == codec.Union {
		e.fields = append(e.fields, slices.Concat(e.path, strings.Split(inner[1:], ".")))
	}
	return e.edit
}

// A maskPath is one path of the parameter fields, for one event type. Its methods
// create the edits on the path, from a leaf of the schema down to the value to hide.
type maskPath struct {
	source expr.Source
	typ    Type
}

func (p maskPath) fault(hint, format string, args ...any) *expr.Fault {
	return &expr.Fault{Source: p.source, Type: p.typ.Name, Msg: fmt.Sprintf(format, args...), Hint: hint}
}

// overlaps returns the fault if the path overlaps with an earlier path.
func (p maskPath) overlaps(e *edit) *expr.Fault {
	return p.fault("remove one of them", "%s and %s overlap", p.source.Text, e.by)
}

// apply makes the value at the end of steps hidden; steps is the part of the path below e.
func (p maskPath) apply(e *edit, steps string, m hide.Method) (failed *expr.Fault) {
	switch {
	case steps == "":
		return p.hide(e, m)
	case e.hide != nil:
		return p.overlaps(e)
	case e.by == "":
		e.by = p.source.Text
	}
	switch {
	case e.node.Kind == codec.Union:
		return p.union(e, steps, m)
	case strings.HasPrefix(steps, "[]"):
		e, steps, failed = p.items(e, steps)
	case e.node.Kind == codec.Map:
		e, steps, failed = p.entry(e, steps)
	default:
		e, steps, failed = p.field(e, steps)
	}
	if failed != nil {
		return failed
	}
	return p.apply(e, steps, m)
}

// union hides the value in each branch that has the rest of the path.
func (p maskPath) union(e *edit, steps string, m hide.Method) *expr.Fault {
	if e.branches == nil {
		e.branches = make([]*edit, len(e.node.Branches))
	}
	_, _, other, nullable := e.node.Nullable()
	some := false
	for i, b := range e.node.Branches {
		if nullable && i != other || !nullable && !hasSteps(b, steps) {
			continue
		}
		if e.branches[i] == nil {
			e.branches[i] = &edit{node: b, by: p.source.Text}
		}
		if failed := p.apply(e.branches[i], steps, m); failed != nil {
			return failed
		}
		some = true
	}
	if !some {
		return p.fault("use redact for the whole value if it can be null, or name a field of one of its records", "%s of %s is %s, and none of these has %s", p.before(steps), p.typ.Name, e.node, strings.TrimPrefix(steps, "."))
	}
	return nil
}

// hasSteps reports whether values of a type, or of a branch of it, have the rest of a path.
func hasSteps(n *codec.Node, steps string) bool {
	if steps == "" {
		return true
	}
	rest, all := strings.CutPrefix(steps, "[]")
	switch {
	case n.Kind == codec.Union:
		return slices.ContainsFunc(n.Branches, func(b *codec.Node) bool { return hasSteps(b, steps) })
	case all:
		return (n.Kind == codec.Array || n.Kind == codec.Map) && hasSteps(n.Elem, rest)
	case n.Kind == codec.Map:
		_, rest = cutStep(steps, "[")
		return hasSteps(n.Elem, rest)
	case n.Kind == codec.Record:
		name, rest := cutStep(steps, ".[")
		f := n.Field(name)
		return f != nil && hasSteps(f.Type, rest)
	}
	return false
}

// cutStep cuts the name at the start of steps, after the point. It ends before one of some
// characters.
func cutStep(steps, end string) (name, rest string) {
	name = strings.TrimPrefix(steps, ".")
	if i := strings.IndexAny(name, end); i >= 0 {
		return name[:i], name[i:]
	}
	return name, ""
}

// entry returns the edit of an entry of e, a map, for the step .KEY at the start of steps,
// and the steps after it.
func (p maskPath) entry(e *edit, steps string) (inner *edit, rest string, _ *expr.Fault) {
	key, rest := cutStep(steps, "[")
	if e.elem != nil {
		return nil, "", p.overlaps(e)
	}
	for i := range e.entries {
		if string(e.entries[i].key) == key {
			return e.entries[i].edit, rest, nil
		}
	}
	inner = &edit{node: e.node.Elem}
	e.entries = append(e.entries, entryEdit{[]byte(key), inner})
	return inner, rest, nil
}

// items returns the edit of all items of e, an array or a map, for the step [] at the
// start of steps, and the steps after it.
func (p maskPath) items(e *edit, steps string) (inner *edit, rest string, _ *expr.Fault) {
	if e.node.Kind != codec.Array && e.node.Kind != codec.Map {
		return nil, "", p.fault("", "%s of %s is %s: [] is for arrays and maps", p.before(steps), p.typ.Name, e.node)
	}
	if len(e.entries) > 0 {
		return nil, "", p.overlaps(e)
	}
	if e.elem == nil {
		e.elem = &edit{node: e.node.Elem, by: p.source.Text}
	}
	return e.elem, steps[len("[]"):], nil
}

// field returns the edit of a field of the record e, for the step .NAME at the start of
// steps, and the steps after it.
func (p maskPath) field(e *edit, steps string) (inner *edit, rest string, _ *expr.Fault) {
	name, rest := cutStep(steps, ".[")
	if steps[0] != '.' || name == "" {
		return nil, "", p.fault("as in data.items[].price", "%q is not a path", p.source.Text)
	}
	if e.node.Kind != codec.Record {
		return nil, "", p.fault("", "%s of %s is %s, which has no fields", p.before(steps), p.typ.Name, e.node)
	}
	i := slices.IndexFunc(e.node.Fields, func(f codec.Field) bool { return f.Name == name })
	if i < 0 {
		return nil, "", p.fault(expr.Suggest(name, e.node.FieldNames()), "%s has no field %s", e.node.Name, name)
	}
	if e.fields == nil {
		e.fields = make([]*edit, len(e.node.Fields))
	}
	if e.fields[i] == nil {
		e.fields[i] = &edit{node: e.node.Fields[i].Type, by: p.source.Text}
	}
	return e.fields[i], rest, nil
}

// before returns the part of the path before steps.
func (p maskPath) before(steps string) string { return strings.TrimSuffix(p.source.Text, steps) }

// hide makes e hide its whole value.
func (p maskPath) hide(e *edit, m hide.Method) *expr.Fault {
	if e.hide != nil || e.elem != nil || e.entries != nil || e.fields != nil || e.branches != nil {
		return p.overlaps(e)
	}
	if e.node.Tag != "" && !m.Redacts() {
		return p.fault("use redact", "%s of %s is encrypted, so %s cannot be applied to its value", p.source.Text, p.typ.Name, m)
	}
	hider, msg, hint := m.Hider(e.node)
	if hider == nil {
		return p.fault(hint, "%s of %s %s", p.source.Text, p.typ.Name, msg)
	}
	e.hide, e.by = hider, p.source.Text
	return nil
}

// append appends the edited form of the value at the start of enc, and returns the bytes
// after the value.
func (e *edit) append(d *hide.Digester, dst, enc []byte) (out, rest []byte, err error) {
	switch {
	case e.hide != nil:
		if rest, err = codec.Skip(e.node, enc); err != nil {
			return dst, nil, err
		}
		dst, err = e.hide(d, dst, enc[:len(enc)-len(rest)])
		return dst, rest, err
	case e.branches != nil:
		at, rest, err := codec.ReadLong(enc)
		if err != nil {
			return dst, rest, err
		}
		return keepOr(e.branches[at], e.node.Branches[at], d, codec.AppendLong(dst, at), rest)
	case e.fields != nil:
		for i := range e.fields {
			if dst, enc, err = keepOr(e.fields[i], e.node.Fields[i].Type, d, dst, enc); err != nil {
				return dst, nil, err
			}
		}
		return dst, enc, nil
	}
	return e.appendBlocks(d, dst, enc)
}

// appendBlocks appends the blocks of an array or a map. Its edit is for all items or for
// some entries.
func (e *edit) appendBlocks(d *hide.Digester, dst, enc []byte) (out, rest []byte, err error) {
	for {
		count, rest, err := codec.ReadBlock(enc)
		dst = codec.AppendLong(dst, count)
		if err != nil || count == 0 {
			return dst, rest, err
		}
		enc = rest
		for range count {
			one := e.elem
			if e.node.Kind == codec.Map {
				key, after, err := codec.ReadText(enc)
				if err != nil {
					return dst, nil, err
				}
				dst, enc = codec.AppendBytes(dst, key), after
				one = e.ofEntry(key)
			}
			if dst, enc, err = keepOr(one, e.node.Elem, d, dst, enc); err != nil {
				return dst, nil, err
			}
		}
	}
}

// ofEntry returns the edit of a map entry, or nil if there is none.
func (e *edit) ofEntry(key []byte) *edit {
	for i := range e.entries {
		if string(e.entries[i].key) == string(key) {
			return e.entries[i].edit
		}
	}
	return e.elem
}

// keepOr copies the value at the start of enc, or edits it if e is not nil.
func keepOr(e *edit, n *codec.Node, d *hide.Digester, dst, enc []byte) (out, rest []byte, err error) {
	if e != nil {
		return e.append(d, dst, enc)
	}
	if rest, err = codec.Skip(n, enc); err != nil {
		return dst, nil, err
	}
	return append(dst, enc[:len(enc)-len(rest)]...), rest, nil
}

func (s *mask) Reads(typ int) [][]string { return s.Writes(typ) }

func (s *mask) Writes(typ int) (paths [][]string) {
	for _, e := range s.edits[typ] {
		paths = append(paths, e.path)
	}
	return paths
}

// Sets implements [FieldSetter].
func (s *mask) Sets(typ int) (paths [][]string) {
	for _, e := range s.edits[typ] {
		if len(e.fields) > 0 {
			paths = append(paths, e.fields...)
		} else {
			paths = append(paths, e.path)
		}
	}
	return paths
}

// Volatile implements [Built]: masked values depend only on the value, the key and the
// salt.
func (s *mask) Volatile(int) (fields [][]string, fate bool) { return nil, false }

func (s *mask) Bind(layouts []*codec.Layout) error {
	for typ := range s.edits {
		for i := range s.edits[typ] {
			s.edits[typ][i].slot = layouts[typ].Slot(s.edits[typ][i].path...)
		}
	}
	return nil
}

func (s *mask) Clone() Built {
	return &mask{edits: s.edits, key: s.key, salt: s.salt, digester: hide.NewDigester(s.key, s.salt)}
}

func (s *mask) Process(_ context.Context, e *pipeline.Event) (pipeline.Verdict, error) {
	edits := s.edits[e.Type]
	s.values = s.values[:0]
	for i := range edits {
		n := len(e.Arena)
		var err error
		if e.Arena, _, err = edits[i].append(s.digester, e.Arena, e.Get(edits[i].slot)); err != nil {
			return pipeline.Drop, badBody(err)
		}
		s.values = append(s.values, e.Arena[n:len(e.Arena):len(e.Arena)])
	}
	for i := range edits {
		e.Set(edits[i].slot, s.values[i])
	}
	return pipeline.Pass, nil
}
