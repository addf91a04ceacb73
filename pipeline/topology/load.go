package topology

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
	"millrace/pipeline/fold"
	"millrace/pipeline/stage"
)

// Load reads a topology and checks it against its schemas. An error is
// [Faults]: all there are.
func Load(src Source, o Options) (*Topology, error) {
	if o.Stages == nil {
		o.Stages = stage.Builtin()
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.LookupEnv == nil {
		o.LookupEnv = func(string) (string, bool) { return "", false }
	}
	if o.File == nil {
		o.File = func(string) ([]byte, error) { return nil, errors.New("files cannot be read here") }
	}
	d, root := parse(src, o.LookupEnv)
	l := &loader{document: d, o: o, topics: map[string]*topic{}, envs: map[envKey]*expr.Env{}, plan: &Topology{}}
	l.schemas = d.readSchemas(o.Schemas, o.SchemasName)
	var args stage.Args
	if root != nil {
		args, _ = d.args(root, expr.Source{Line: 1, Col: 1}, "the topology", fileParams(o.Stages))
		l.file(args)
	}
	if len(d.faults) > 0 {
		return nil, d.sorted()
	}
	l.warn(args)
	return l.plan, nil
}

// A loader turns decoded parameters into the plan.
type loader struct {
	*document
	o       Options
	schemas *catalog
	plan    *Topology
	topics  map[string]*topic
	tables  map[string]*stage.Table
	envs    map[envKey]*expr.Env

	pipelines   []*declared
	projections []*declared

	encryption stage.Args
	seenTags   map[string]bool // records with tagged fields that were found in use
}

// topic is a Topic on its way.
type topic struct {
	*Topic
	name     expr.Source
	typed    bool          // its types are declared
	words    []expr.Source // where, by type
	unsure   bool          // its types are not all known, because of a fault
	envelope bool          // it says what its records carry
	headers  expr.Source   // where it says which headers its records have
	checked  bool          // what stands for the envelope was compiled
	bad      bool          // and is faulty
	first    *declared     // the first pipeline that writes it
	told     *declared     // and whose headers it has
	use      expr.Source   // the first place that gives it a use of its own: dead letters, snapshots
	as       string        // that use
}

// declared is a pipeline or a projection on its way.
type declared struct {
	name expr.Source
	args stage.Args
	what string // "pipeline enrich"

	pipeline   *Pipeline
	targets    []target
	done       bool // it has been built, or cannot be
	failed     bool // it is part of a circle
	projection *Projection
}

var (
	topicName = regexp.MustCompile(`^[A-Za-z0-9._-]{1,249}$`)
	otherName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$`)
)

// checkName checks the name of something that is not a topic.
func (l *loader) checkName(what string, name expr.Source) {
	if !otherName.MatchString(name.Text) {
		l.at(name, "letters, digits, dots, dashes and underscores, at most 100, beginning with a letter or a digit", "%q cannot be the name of a %s", name.Text, what)
	}
}

func (l *loader) file(args stage.Args) {
	if name, ok := args.Find("name"); ok {
		l.checkName("topology", name.Value)
		l.plan.Name = name.Value.Text
	}
	items := func(name string) []stage.Item {
		arg, _ := args.Find(name)
		return arg.Items
	}
	for _, item := range items("topics") {
		l.topic(item)
	}
	for _, item := range items("projections") {
		l.declareProjection(item)
	}
	l.declareEncryption(args)
	l.readSubjects()
	l.similarTopics()
	for _, item := range items("tables") {
		l.table(item)
	}
	for _, item := range items("pipelines") {
		l.declarePipeline(item)
	}
	l.circles()
	l.buildPipelines()
	for _, p := range l.projections {
		l.buildProjection(p)
	}
	for _, t := range l.plan.Topics {
		l.checkBare(l.topics[t.Name])
	}
	for _, t := range l.plan.Topics {
		if t.Headers == CloudEvents {
			t.Source = l.plan.Name
		}
	}
	l.checkEncryption()
	l.plan.hash = l.hash(args)
}

// topic takes in a declared topic.
func (l *loader) topic(item stage.Item) {
	t := &topic{Topic: &Topic{Name: item.Key.Text}, name: item.Key, unsure: l.faulty[place{item.Key.Line, item.Key.Col}]}
	if !topicName.MatchString(t.Name) || t.Name == "." || t.Name == ".." {
		l.at(item.Key, "letters, digits, dots, dashes and underscores, at most 249", "%q cannot be the name of a topic", t.Name)
	}
	l.topics[t.Name] = t
	l.plan.Topics = append(l.plan.Topics, t.Topic)
	if arg, ok := item.Args.Find("partitions"); ok {
		t.Partitions = int(arg.Number)
	}
	if arg, ok := item.Args.Find("replication"); ok {
		t.Replication = int(arg.Number)
	}
	if arg, ok := item.Args.Find("config"); ok {
		t.Config = map[string]string{}
		for _, e := range arg.Entries {
			t.Config[e.Key.Text] = e.Value.Text
		}
	}
	types, ok := item.Args.Find("types")
	t.typed = ok
	if ok && len(types.Words) == 0 {
		l.at(types.Key, "leave it out if a pipeline writes the topic, or name the records that are on it", "types is empty")
	}
	seen := map[*codec.Schema]expr.Source{}
	for _, word := range types.Words {
		s, msg, hint := l.schemas.find(word.Text)
		if s == nil {
			t.unsure = true
			if msg != "" {
				l.at(word, hint, "%s", msg)
			}
			continue
		}
		if first, twice := seen[s]; twice {
			l.at(word, "remove one of them", "%s is here for the second time; the first is at %d:%d", s.Name(), first.Line, first.Col)
			continue
		}
		seen[s] = word
		t.Types, t.words = append(t.Types, s), append(t.words, word)
	}
	l.envelope(t, item.Args)
	if arg, ok := item.Args.Find("headers"); ok {
		t.headers, t.Headers = arg.Key, Headers(arg.Value.Text)
		l.checkHeaders(t, arg.Key)
	}
}

// checkHeaders checks that the events of a topic have what its headers say.
func (l *loader) checkHeaders(t *topic, at expr.Source) {
	if t.Headers == CloudEvents && t.Bare != nil && t.Bare.ID.Text == "" {
		l.at(at, "say with the topic what its id is", "a CloudEvent has an id, and the events on %s have none", t.Name)
	}
}

// envelope checks what a topic's records carry.
func (l *loader) envelope(t *topic, args stage.Args) {
	arg, given := args.Find("envelope")
	t.envelope = given
	bare := given && arg.Value.Text == envelopeNone
	part := func(name string) expr.Source {
		arg, ok := args.Find(name)
		if ok && !bare {
			l.at(arg.Key, "add envelope: none, if the records have none", "%s is for topics whose events carry no envelope", name)
		}
		return arg.Value
	}
	id, key, when := part("id"), part("key"), part("time")
	if bare {
		t.Bare = &expr.Bare{ID: id, Key: key, Time: when}
	}
	for i, s := range t.Types {
		if !bare && t.typed {
			l.checkEnvelope(t.words[i], s)
		}
	}
	if t.typed {
		l.checkBare(t)
	}
}

// checkBare checks what stands for the envelope of a topic's events, once their
// types are known, and reports whether it is sound.
func (l *loader) checkBare(t *topic) bool {
	if t.checked || t.Bare == nil {
		return !t.bad
	}
	t.checked = true
	var faults []expr.Fault
	for _, s := range t.Types {
		_, more := t.Bare.Compile(s, t.Name)
		faults = append(faults, more...)
	}
	l.grouped(faults, typeNames(t.Types))
	t.bad = len(faults) > 0
	return !t.bad
}

// checkEnvelope checks that events of a type have what all of Millrace relies
// on.
func (l *loader) checkEnvelope(at expr.Source, s *codec.Schema) {
	for _, want := range []struct {
		name, logical string
		kind          codec.Kind
	}{{"id", "", codec.String}, {"type", "", codec.String}, {"timestamp", "timestamp-m", codec.Long}} {
		f := s.Root().Field(want.name)
		if f != nil && f.Type.Kind == want.kind && strings.HasPrefix(f.Type.Logical, want.logical) {
			continue
		}
		l.at(at, "an event has id and type (string) and timestamp (timestamp-micros); if these records have none, the topic needs envelope: none",
			"%s does not have the field %s that every event has", s.Name(), want.name)
		return
	}
}

// similarTopics finds topics that Kafka does not let stand side by side.
func (l *loader) similarTopics() {
	seen := map[string]*topic{}
	for _, plain := range l.plan.Topics {
		t := l.topics[plain.Name]
		like := strings.ReplaceAll(t.Name, ".", "_")
		if other := seen[like]; other != nil {
			l.at(t.name, "Kafka takes dots and underscores for the same in names of metrics", "%s and %s differ only in dots and underscores", t.Name, other.Name)
		}
		seen[like] = t
	}
}

// find returns the topic that a parameter names; nil, with a fault, if it is
// not declared.
func (l *loader) find(args stage.Args, name string) (*topic, stage.Arg) {
	arg, ok := args.Find(name)
	if !ok {
		return nil, arg
	}
	t := l.topics[arg.Value.Text]
	if t == nil {
		hint := expr.Nearest(arg.Value.Text, slices.Sorted(maps.Keys(l.topics)))
		if hint == "" {
			hint = "declare it: topics: {" + arg.Value.Text + ": {partitions: NUMBER}}"
		}
		l.at(arg.Value, hint, "there is no topic %s", arg.Value.Text)
	}
	return t, arg
}

// claim gives a topic a use that bears no other beside it, and reports whether
// it can have it.
func (l *loader) claim(t *topic, at expr.Source, as string) bool {
	switch {
	case t.as != "" && t.as != as:
		l.at(at, "give each a topic of its own", "%s cannot hold %s: it holds %s (%d:%d)", t.Name, as, t.as, t.use.Line, t.use.Col)
		return false
	case t.as == "":
		t.as, t.use = as, at
	}
	return true
}

const (
	asEvents      = "events"
	asDeadLetters = "dead letters"
	asReceipts    = "receipts"
)

// receiptsRetention is how long receipts are kept if the topic does not say: three
// days, in milliseconds.
const receiptsRetention = "259200000"

// checkReceipts checks a topic for receipts, and says how long they are kept.
func (l *loader) checkReceipts(t *topic, at expr.Source) {
	if t.typed {
		l.at(at, "remove its types", "%s is declared to hold events, and cannot hold receipts", t.Name)
	}
	t.Config = maps.Clone(t.Config)
	if t.Config == nil {
		t.Config = map[string]string{}
	}
	switch policy := t.Config["cleanup.policy"]; policy {
	case "", "delete":
		t.Config["cleanup.policy"] = "delete"
	default:
		l.at(at, "set it to delete, or leave it out", "%s has cleanup.policy %s, and would keep a receipt of every event for ever", t.Name, policy)
	}
	if t.Config["retention.ms"] == "" {
		t.Config["retention.ms"] = receiptsRetention
	}
}

func (l *loader) declareProjection(item stage.Item) {
	p := &declared{name: item.Key, args: item.Args, what: "projection " + item.Key.Text, projection: &Projection{Name: item.Key.Text}}
	l.checkName("projection", item.Key)
	l.projections = append(l.projections, p)
	l.plan.Projections = append(l.plan.Projections, p.projection)
	from, at := l.find(p.args, "from")
	if from != nil && l.claim(from, at.Value, asEvents) {
		p.projection.From = from.Topic
	}
	if _, ok := p.args.Find("late"); ok {
		if late, at := l.find(p.args, "late"); late != nil && l.claim(late, at.Value, asDeadLetters) {
			p.projection.Late = late.Topic
		}
	}
	arg, ok := p.args.Find("snapshots")
	if !ok {
		return
	}
	name := arg.Value.Text
	t := l.topics[name]
	if t == nil {
		if !topicName.MatchString(name) || name == "." || name == ".." {
			l.at(arg.Value, "letters, digits, dots, dashes and underscores, at most 249", "%q cannot be the name of a topic", name)
			return
		}
		t = &topic{Topic: &Topic{Name: name, Config: map[string]string{"cleanup.policy": "compact"}}, name: arg.Value}
		if from != nil {
			t.Partitions, t.Replication = from.Partitions, from.Replication
		}
		l.topics[name] = t
		l.plan.Topics = append(l.plan.Topics, t.Topic)
	} else if t.Snapshots == nil && t.as == "" {
		l.checkSnapshots(t, from, arg.Value)
	}
	if t.Snapshots != nil {
		l.at(arg.Value, "give each a topic of its own", "%s holds the snapshots of projection %s already", name, t.Snapshots.Name)
		return
	}
	if l.claim(t, arg.Value, "the snapshots of "+p.what) {
		t.Snapshots, p.projection.Snapshots = p.projection, t.Topic
	}
}

// checkSnapshots checks a topic for snapshots that is declared.
func (l *loader) checkSnapshots(t, from *topic, at expr.Source) {
	if t.typed {
		l.at(at, "remove its types", "%s is declared to hold events, and cannot hold snapshots", t.Name)
	}
	if from != nil && t.Partitions > 0 && from.Partitions > 0 && t.Partitions != from.Partitions {
		l.at(at, fmt.Sprintf("give both the same number, or leave %s out of topics", t.Name),
			"%s has %d partitions and %s has %d: a snapshot is on the partition of its events", t.Name, t.Partitions, from.Name, from.Partitions)
	}
	l.compact(t, at, "snapshots that are still the newest")
}

func (l *loader) table(item stage.Item) {
	l.checkName("table", item.Key)
	table := &Table{Table: stage.Table{Name: item.Key.Text}}
	if l.tables == nil {
		l.tables = map[string]*stage.Table{}
	}
	l.tables[table.Name] = &table.Table
	l.plan.Tables = append(l.plan.Tables, table)
	what := "table " + table.Name
	_, isTopic := item.Args.Find("topic")
	file, isFile := item.Args.Find("file")
	key, keyed := item.Args.Find("key")
	schema, typed := item.Args.Find("schema")
	switch {
	case isTopic && isFile:
		l.at(file.Key, "remove one of them", "%s is a topic or a file, not both", what)
	case isTopic:
		if keyed {
			l.at(key.Key, "remove it", "the key of a topic's rows is the record's key")
		}
		if typed {
			l.at(schema.Key, "remove it", "the rows of a topic have the topic's type")
		}
		l.topicTable(table, item)
	case isFile:
		table.File = file.Value.Text
		l.fileTable(table, what, item, file.Value)
	default:
		l.at(item.Key, "topic: NAME, or file: PATH", "%s is neither a topic nor a file", what)
	}
}

func (l *loader) topicTable(table *Table, item stage.Item) {
	t, arg := l.find(item.Args, "topic")
	if t == nil {
		return
	}
	table.Topic = t.Topic
	switch {
	case t.Snapshots != nil:
		if p := l.projection(t.Snapshots); p != nil {
			if state, ok := p.args.Find("state"); ok {
				table.Schema, _, _ = l.schemas.find(state.Value.Text)
			}
		}
	case len(t.Types) == 1:
		table.Schema = t.Types[0]
		if !strings.Contains(t.Config["cleanup.policy"], "compact") {
			l.at(arg.Value, "give the topic config: {cleanup.policy: compact}", "%s cannot be a table: it is not compacted, so Kafka deletes rows that are still the newest", t.Name)
		}
	case !t.unsure:
		l.at(arg.Value, "a table's topic holds the snapshots of a projection, or declares one type", "%s cannot be a table: it has %d types", t.Name, len(t.Types))
	}
}

func (l *loader) projection(p *Projection) *declared {
	i := slices.IndexFunc(l.projections, func(d *declared) bool { return d.projection == p })
	if i < 0 {
		return nil
	}
	return l.projections[i]
}

func (l *loader) fileTable(table *Table, what string, item stage.Item, file expr.Source) {
	key, keyed := item.Args.Find("key")
	schema, typed := item.Args.Find("schema")
	if !keyed {
		l.at(item.Key, "add key: FIELD (the field that is a row's key)", "%s has no key", what)
	}
	if !typed {
		l.at(item.Key, "add schema: NAME (the record that a row is)", "%s has no schema", what)
	} else if s, msg, hint := l.schemas.find(schema.Value.Text); s != nil {
		table.Schema = s
		if tagged, _ := s.Tagged(); len(tagged) > 0 {
			l.at(schema.Value, "give it a schema without tags", "%s is a file, where nothing is encrypted, and %s has tagged fields", what, s.Name())
		}
	} else if msg != "" {
		l.at(schema.Value, hint, "%s", msg)
	}
	if keyed && table.Schema != nil {
		table.Key = key.Value.Text
		if f := table.Schema.Root().Field(table.Key); f == nil || f.Type.Kind != codec.String {
			l.at(key.Value, "the key is a field of type string", "%s has no string %s", table.Schema.Name(), table.Key)
		}
	}
	if i := strings.LastIndexByte(table.File, '.'); i < 0 || !slices.Contains([]string{"json", "jsonl", "csv"}, table.File[i+1:]) {
		l.at(file, "its name ends in .json, .jsonl or .csv", "%s is no file of rows", table.File)
		return
	}
	text, err := l.o.File(table.File)
	if err != nil {
		l.at(file, "", "%s cannot be read: %v", table.File, err)
	}
	table.Text = text
}

// grouped adds faults of stages and folds. The same fault of several types is
// one, which names them unless it is that of all, by their names in all.
func (l *loader) grouped(faults []expr.Fault, all []string) {
	type key struct {
		at   place
		text string
	}
	type group struct {
		expr.Fault
		types []string
	}
	var order []key
	groups := map[key]*group{}
	for _, f := range faults {
		text := f.Msg
		if f.Type != "" { // what is said alike of two types is the same
			text = wordOf(f.Type[strings.LastIndexByte(f.Type, '.')+1:]).ReplaceAllString(text, "\x00")
		}
		k := key{l.place(f.Source, f.Offset), text}
		if groups[k] == nil {
			groups[k] = &group{Fault: f}
			order = append(order, k)
		}
		if i := slices.IndexFunc(all, func(name string) bool { return f.Type == name || strings.HasSuffix(f.Type, "."+name) }); i >= 0 && !slices.Contains(groups[k].types, all[i]) {
			groups[k].types = append(groups[k].types, all[i])
		}
	}
	for _, k := range order {
		g := groups[k]
		msg := g.Msg
		switch named := k.text != g.Msg; {
		case len(g.types) == 0:
		case named && len(g.types) == 1:
		case named && len(g.types) == len(all):
			msg += fmt.Sprintf("; the same for all %d types", len(all))
		case named:
			msg += "; the same for " + listed(g.types[1:])
		case len(g.types) < len(all):
			msg += " (for " + listed(g.types) + ")"
		}
		l.fault(k.at, g.Hint, "%s", msg)
	}
}

// wordOf matches the name of a type, or of a record that is named after it, with
// any namespace before it.
func wordOf(name string) *regexp.Regexp {
	return regexp.MustCompile(`(?:\w+\.)*\b` + regexp.QuoteMeta(name) + `\w*`)
}

func typeNames(types []*codec.Schema) []string {
	count := map[string]int{}
	for _, s := range types {
		count[short(s)]++
	}
	names := make([]string, len(types))
	for i, s := range types {
		names[i] = short(s)
		if count[names[i]] > 1 {
			names[i] = s.Name()
		}
	}
	return names
}

// typeOf returns the index of the type that a word names, or -1 with a fault.
func (l *loader) typeOf(word expr.Source, types []*codec.Schema, t *topic) int {
	names := typeNames(types)
	for i, s := range types {
		if word.Text == names[i] || word.Text == s.Name() {
			return i
		}
	}
	if t.unsure {
		return -1
	}
	hint := expr.Nearest(word.Text, names)
	if hint == "" && len(names) > 0 {
		hint = "there are " + listed(names)
	}
	l.at(word, hint, "there is no %s on %s", word.Text, t.Name)
	return -1
}

func (l *loader) buildProjection(p *declared) {
	if p.projection.From == nil {
		return
	}
	from := l.topics[p.projection.From.Name]
	if len(from.Types) == 0 {
		l.untyped(from, p)
		return
	}
	stateArg, ok := p.args.Find("state")
	key, keyed := p.args.Find("key")
	on, hasOn := p.args.Find("on")
	if !keyed && from.Bare == nil {
		l.at(p.name, "add key: PATH, of the aggregate's id in each event type under on", "%s has no key", p.what)
		return
	}
	if !ok || !hasOn || !l.checkBare(from) {
		return
	}
	state, msg, hint := l.schemas.find(stateArg.Value.Text)
	if state == nil {
		if msg != "" {
			l.at(stateArg.Value, hint, "%s", msg)
		}
		return
	}
	if len(on.Items) == 0 {
		l.at(on.Key, "on: {TYPE: {set: {FIELD: EXPRESSION}}}", "%s does nothing: on is empty", p.what)
	}
	spec := fold.Spec{Name: p.name.Text, Types: from.Types, Key: key.Value, Bare: from.Bare, State: state}
	if !keyed {
		spec.Key = expr.Source{Line: p.name.Line, Col: p.name.Col} // for faults
	}
	if arg, ok := p.args.Find("max_state"); ok {
		spec.MaxState = int(arg.Number)
	}
	if arg, ok := p.args.Find("partitioner"); ok {
		spec.AnyPartition = arg.Value.Text == partitionerOther
	}
	if arg, ok := p.args.Find("wait"); ok {
		spec.Wait = arg.Number
	}
	if arg, ok := p.args.Find("on_gap"); ok {
		spec.ApplyGap = arg.Value.Text == onGapApply
	}
	if spec.Window, ok = l.window(p); !ok {
		return
	}
	p.projection.Publish = l.publish(p)
	seen := map[int]expr.Source{}
	for _, item := range on.Items {
		i := l.typeOf(item.Key, from.Types, from)
		if i < 0 {
			continue
		}
		if first, twice := seen[i]; twice {
			l.at(item.Key, "remove one of them", "%s is here for the second time; the first is at %d:%d", item.Key.Text, first.Line, first.Col)
			continue
		}
		seen[i] = item.Key
		one := fold.On{Type: i}
		if arg, ok := item.Args.Find("delete"); ok {
			one.Delete = arg.Flag
		}
		set, _ := item.Args.Find("set")
		for _, e := range set.Entries {
			one.Set = append(one.Set, fold.Set{Field: e.Key, Value: e.Value})
		}
		spec.On = append(spec.On, one)
	}
	f, faults := fold.Compile(spec)
	for i := range faults {
		if faults[i].Source == spec.Key && faults[i].Type == "" {
			faults[i].Source = stateArg.Value // it is one of the state
		}
	}
	var folded []string
	for _, o := range spec.On {
		folded = append(folded, typeNames(spec.Types)[o.Type])
	}
	l.grouped(faults, folded)
	p.projection.Fold = f
	if f != nil && p.projection.Snapshots != nil {
		p.projection.Snapshots.Types = []*codec.Schema{f.Snapshot()}
	}
}

// window returns the windows of a projection. It is not ok if they are faulty.
func (l *loader) window(p *declared) (w fold.Window, ok bool) {
	before := len(l.faults)
	arg, has := p.args.Find("window")
	if !has {
		for _, name := range []string{"keep", "late"} {
			if arg, ok := p.args.Find(name); ok {
				l.at(arg.Key, "give it a window, or remove "+name, "%s has no window, and %s is about windows", p.what, name)
			}
		}
		if arg, _ := p.args.Find("grace"); arg.Duration > 0 {
			l.at(arg.Key, "give it a window, or remove grace", "%s has no window, and grace is about windows", p.what)
		}
		return w, len(l.faults) == before
	}
	args := arg.Items[0].Args
	tumbling, tumbles := args.Find("tumbling")
	hopping, hops := args.Find("hopping")
	every, overlaps := args.Find("every")
	switch {
	case tumbles == hops:
		l.at(arg.Key, "window: {tumbling: 1h}, or window: {hopping: 1h, every: 10m}", "a window is tumbling or hopping")
	case tumbles && overlaps:
		l.at(every.Key, "remove it, or say hopping", "tumbling windows begin where the one before ends")
	case tumbles:
		w.Size, w.Every = tumbling.Duration, tumbling.Duration
	case !overlaps:
		l.at(hopping.Key, "window: {hopping: 1h, every: 10m}", "hopping windows have no every")
	default:
		w.Size, w.Every = hopping.Duration, every.Duration
	}
	if len(l.faults) > before {
		return w, false
	}
	switch {
	case w.Size < time.Millisecond || w.Every < time.Millisecond:
		l.at(arg.Key, "", "a window is at least 1ms long, and so far from the next")
	case w.Every > w.Size:
		l.at(every.Key, fmt.Sprintf("at most %s", w.Size), "there would be time that is in no window")
	case w.Size/w.Every > fold.MaxOverlap:
		l.at(every.Key, fmt.Sprintf("at least %s", w.Size/fold.MaxOverlap), "an event would be in more than %d windows", fold.MaxOverlap)
	}
	if arg, ok := p.args.Find("grace"); ok {
		w.Grace = arg.Duration
	}
	if arg, ok := p.args.Find("keep"); ok {
		if w.Keep = arg.Duration; w.Keep < w.Grace {
			l.at(arg.Value, "at least as long", "states would be deleted while their windows still take events: grace is %s", w.Grace)
		}
	}
	return w, len(l.faults) == before
}

// publish returns when a projection publishes.
func (l *loader) publish(p *declared) (out Publish) {
	arg, ok := p.args.Find("publish")
	if !ok || len(arg.Items) == 0 {
		return out
	}
	args := arg.Items[0].Args
	if len(args) != 1 {
		l.at(arg.Key, "publish: every, {events: 1000}, {every: 10s} or {recovery: 10s}", "publish is one of its choices")
		return out
	}
	switch args[0].Name {
	case "events":
		out.Events = args[0].Number
	case "every":
		out.Every = args[0].Duration
	case "recovery":
		out.Recovery = args[0].Duration
	}
	return out
}

// untyped says that nobody knows what is on a topic, unless that is the
// consequence of another fault.
func (l *loader) untyped(t *topic, by *declared) {
	if t.unsure || t.Snapshots != nil {
		return
	}
	from, _ := by.args.Find("from")
	l.at(from.Value, "add types to the topic, or let a pipeline write it", "%s reads %s, but nothing says which event types are on it", by.what, t.Name)
}

// hash identifies what the file and the schemas that it uses say.
func (l *loader) hash(args stage.Args) string {
	h := sha256.New()
	fmt.Fprintf(h, "topology 1\n")
	writeArgs(h, args)
	for _, name := range slices.Sorted(maps.Keys(l.topics)) {
		for _, s := range l.topics[name].Types {
			fmt.Fprintf(h, "type %q %q\n", name, s.String())
		}
	}
	for _, p := range l.plan.Pipelines {
		for _, o := range p.Old {
			fmt.Fprintf(h, "old %q %q\n", p.Name, o.Schema.String())
		}
	}
	for _, t := range l.plan.Tables {
		fmt.Fprintf(h, "table %q %x\n", t.Name, sha256.Sum256(t.Text))
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

func writeArgs(w io.Writer, args stage.Args) {
	args = slices.Clone(args)
	slices.SortFunc(args, func(a, b stage.Arg) int { return strings.Compare(a.Name, b.Name) })
	for _, a := range args {
		fmt.Fprintf(w, "%q %q %d %d %v {\n", a.Name, a.Value.Text, a.Number, a.Duration, a.Flag)
		for _, word := range a.Words {
			fmt.Fprintf(w, "%q\n", word.Text)
		}
		for _, e := range a.Entries {
			fmt.Fprintf(w, "%q: %q\n", e.Key.Text, e.Value.Text)
		}
		items := slices.Clone(a.Items)
		switch a.Name {
		case "topics", "tables", "pipelines", "projections": // whose order means nothing
			slices.SortFunc(items, func(a, b stage.Item) int { return strings.Compare(a.Key.Text, b.Key.Text) })
		}
		for _, item := range items {
			fmt.Fprintf(w, "- %q\n", item.Key.Text)
			writeArgs(w, item.Args)
		}
		fmt.Fprintln(w, "}")
	}
}
