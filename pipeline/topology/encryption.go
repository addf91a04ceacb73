package topology

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
	"millrace/pipeline/stage"
)

// Encryption says how fields that are tagged as personal ([codec.PII]) are
// encrypted.
type Encryption struct {
	Keys *Topic // the compacted topic of the keys

	subjects map[string]string // by full name of a record
}

// Subject returns the dotted path of the field that says whose the tagged fields of
// a record are, "" if it has none.
func (e *Encryption) Subject(s *codec.Schema) string {
	if e == nil {
		return ""
	}
	return e.subjects[s.Name()]
}

// keyPartitions is how many partitions a key topic has that is not declared: always
// the same, for a subject's keys are in one.
const keyPartitions = 12

// keyLag is how long a key that was destroyed stands in the key topic, before it is
// compacted, if the topic does not say: a day, in milliseconds.
const keyLag = "86400000"

const asKeys = "the keys of subjects"

var encryptionParams = []stage.Param{
	{Name: "key_topic", Form: stage.Word, Required: true, Doc: "The compacted topic that the keys are on, each wrapped by a key-encryption key. It need not be declared, and then has 12 partitions."},
	{Name: "subject", Form: stage.Texts, Required: true,
		Doc: "Whose the tagged fields are: from the name of each record that has some, events and states, to the path of the field with the subject's id."},
}

// declareEncryption takes in the topic and the subjects; what they are for is
// checked when all is known.
func (l *loader) declareEncryption(args stage.Args) {
	arg, ok := args.Find("encryption")
	if !ok || len(arg.Items) == 0 {
		return
	}
	l.encryption = arg.Items[0].Args
	l.plan.Encryption = &Encryption{subjects: map[string]string{}}
	name, ok := l.encryption.Find("key_topic")
	if !ok {
		return
	}
	t := l.topics[name.Value.Text]
	if t == nil {
		if !topicName.MatchString(name.Value.Text) || name.Value.Text == "." || name.Value.Text == ".." {
			l.at(name.Value, "letters, digits, dots, dashes and underscores, at most 249", "%q cannot be the name of a topic", name.Value.Text)
			return
		}
		t = &topic{Topic: &Topic{Name: name.Value.Text, Partitions: keyPartitions}, name: name.Value}
		for _, have := range l.plan.Topics {
			t.Replication = max(t.Replication, have.Replication)
		}
		l.topics[t.Name] = t
		l.plan.Topics = append(l.plan.Topics, t.Topic)
	} else if t.typed {
		l.at(name.Value, "remove its types", "%s is declared to hold events, and cannot hold keys", t.Name)
	}
	if !l.claim(t, name.Value, asKeys) {
		return
	}
	l.compact(t, name.Value, "keys that are still needed")
	if t.Config["max.compaction.lag.ms"] == "" {
		t.Config["max.compaction.lag.ms"] = keyLag
	}
	l.plan.Encryption.Keys = t.Topic
}

// compact sees to it that a topic is compacted.
func (l *loader) compact(t *topic, at expr.Source, deletes string) {
	switch policy := t.Config["cleanup.policy"]; policy {
	case "", "compact":
		t.Config = maps.Clone(t.Config)
		if t.Config == nil {
			t.Config = map[string]string{}
		}
		t.Config["cleanup.policy"] = "compact"
	default:
		l.at(at, "set it to compact, or leave it out", "%s has cleanup.policy %s, which deletes %s", t.Name, policy, deletes)
	}
}

// readSubjects reads where the subject of each record is.
func (l *loader) readSubjects() {
	arg, _ := l.encryption.Find("subject")
	given := map[string]expr.Source{}
	for _, e := range arg.Entries {
		s, msg, hint := l.schemas.find(e.Key.Text)
		if s == nil {
			if msg != "" {
				l.at(e.Key, hint, "%s", msg)
			}
			continue
		}
		if first, twice := given[s.Name()]; twice {
			l.at(e.Key, "remove one of them", "%s is here for the second time; the first is at %d:%d", s.Name(), first.Line, first.Col)
			continue
		}
		given[s.Name()] = e.Key
		l.plan.Encryption.subjects[s.Name()] = e.Value.Text // even if it is faulty: it is not missing
		if tagged, _ := s.Tagged(); len(tagged) == 0 {
			l.at(e.Key, fmt.Sprintf("tag some in its schema with %q: true, or remove it here", codec.PII), "%s has no tagged field", s.Name())
			continue
		}
		if msg, hint := badSubject(s, e.Value.Text); msg != "" {
			l.at(e.Value, hint, "%s", msg)
		}
	}
	if len(arg.Entries) == 0 && arg.Name != "" {
		l.at(arg.Key, "subject: {RECORD: PATH}", "subject is empty")
	}
}

// badSubject says what is wrong with a path as that of a subject.
func badSubject(s *codec.Schema, path string) (msg, hint string) {
	n := s.Root()
	names := strings.Split(path, ".")
	for i, name := range names {
		f := n.Field(name)
		if n.Kind != codec.Record || f == nil {
			var have []string
			for _, f := range n.Fields {
				have = append(have, f.Name)
			}
			return fmt.Sprintf("%s has no field %s", s.Name(), strings.Join(names[:i+1], ".")), expr.Nearest(name, have)
		}
		n = f.Type
	}
	if n.Tag != "" {
		return fmt.Sprintf("%s of %s is encrypted itself, and cannot say whose it is", path, s.Name()), "name a field that is not tagged"
	}
	if other, _, _, ok := n.Nullable(); ok {
		n = other
	}
	if n.Kind != codec.String && n.Kind != codec.Int && n.Kind != codec.Long {
		return fmt.Sprintf("%s of %s is %s, but a subject's id is a string, an int or a long", path, s.Name(), n), ""
	}
	return "", ""
}

// encrypted checks that it is known how the tagged fields of a record are
// encrypted that stands somewhere.
func (l *loader) encrypted(at expr.Source, s *codec.Schema) {
	tagged, _ := s.Tagged()
	if len(tagged) == 0 || l.seenTags[s.Name()] {
		return
	}
	if l.seenTags == nil {
		l.seenTags = map[string]bool{}
	}
	l.seenTags[s.Name()] = true
	names := make([]string, len(tagged))
	for i := range tagged {
		names[i] = strings.Join(tagged[i], ".")
	}
	if l.plan.Encryption == nil {
		l.at(at, fmt.Sprintf("encryption: {key_topic: NAME, subject: {%s: PATH}}", short(s)), "%s has fields that are tagged as personal (%s), but nothing says how they are encrypted", s.Name(), listed(names))
		return
	}
	if arg, ok := l.encryption.Find("subject"); ok && l.plan.Encryption.Subject(s) == "" {
		l.at(arg.Key, fmt.Sprintf("subject: {%s: PATH}", short(s)), "nothing says whose the tagged fields of %s are (%s)", s.Name(), listed(names))
	}
}

// checkEncryption checks all that is known of tagged fields, when everything is
// built.
func (l *loader) checkEncryption() {
	for _, plain := range l.plan.Topics {
		t := l.topics[plain.Name]
		for i, word := range t.words {
			l.encrypted(word, t.Types[i])
		}
	}
	for _, p := range l.projections {
		p.projection.Subjects = l.keyedBySubject(p)
		arg, ok := p.args.Find("state")
		if s, _, _ := l.schemas.find(arg.Value.Text); ok && s != nil {
			l.encrypted(arg.Value, s)
			if path := l.plan.Encryption.Subject(s); path != "" && p.projection.Fold != nil {
				l.checkSubject(p, s, path)
			}
		}
	}
	if l.plan.Encryption != nil && len(l.seenTags) == 0 && len(l.plan.Encryption.subjects) > 0 && len(l.faults) == 0 {
		arg, _ := l.encryption.Find("subject")
		l.at(arg.Key, "remove encryption, or give a topic types that have some", "no record with tagged fields is on a topic or is a state")
	}
}

// keyedBySubject reports whether the aggregates of a projection are the subjects of
// its events' encrypted fields.
func (l *loader) keyedBySubject(p *declared) (is bool) {
	key, _ := p.args.Find("key")
	on, _ := p.args.Find("on")
	for _, item := range on.Items {
		of := ""
		if from := p.projection.From; from != nil {
			of = l.subjectOf(item.Key.Text, from.Types)
		}
		if of != "" && of != key.Value.Text {
			return false
		}
		is = is || of != ""
	}
	return is
}

// subjectOf returns the path of the subject of a type that a word names, "" if it
// has none.
func (l *loader) subjectOf(word string, types []*codec.Schema) string {
	for _, t := range types {
		if word == short(t) || word == t.Name() {
			return l.plan.Encryption.Subject(t)
		}
	}
	return ""
}

// checkSubject checks that a state's subject is that of the events whose tagged
// fields it takes over: they cannot be read with another.
func (l *loader) checkSubject(p *declared, state *codec.Schema, path string) {
	tagged, _ := state.Tagged()
	key, _ := p.args.Find("key")
	stateArg, _ := p.args.Find("state")
	on, _ := p.args.Find("on")
	never := true
	for _, item := range on.Items {
		of := cmp.Or(l.subjectOf(item.Key.Text, p.projection.From.Types), key.Value.Text)
		set, _ := item.Args.Find("set")
		takes, sets := false, false
		for _, e := range set.Entries {
			takes = takes || slices.ContainsFunc(tagged, func(p []string) bool { return strings.Join(p, ".") == e.Key.Text })
			if e.Key.Text != path {
				continue
			}
			sets, never = true, false
			if e.Value.Text != of {
				l.at(e.Value, path+": "+of, "%s says whose the encrypted fields of %s are, and so has to be that of %s", path, state.Name(), item.Key.Text)
			}
		}
		if takes && !sets && of != key.Value.Text {
			l.at(item.Key, fmt.Sprintf("set: {%s: %s, ...}", path, of), "%s sets encrypted fields of %s, but not %s, which says whose they are", item.Key.Text, state.Name(), path)
		}
	}
	if never {
		l.at(stateArg.Value, path+": PATH", "no event sets %s of %s, which says whose its encrypted fields are", path, state.Name())
	}
}

// keepsSubject checks that a stage leaves the subject of encrypted fields alone.
func (b *builder) keepsSubject(s Stage, at expr.Source) {
	for i, schema := range b.schemas {
		path := b.plan.Encryption.Subject(schema)
		if path == "" || !s.On[i] {
			continue
		}
		for _, w := range s.Built.Writes(i) {
			if strings.Join(w, ".") == path {
				b.at(at, "set another field", "stage %s sets %s of %s, which says whose its encrypted fields are: they could not be read any more", s.Name, path, b.names[i])
				b.failed = true
			}
		}
	}
}
