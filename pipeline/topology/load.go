package topology

import (
	"errors"
	"regexp"
	"time"

	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
	"millrace/pipeline/expr/metadata"
	"millrace/pipeline/keyformat"
	"millrace/pipeline/stage"
)

// Load reads a topology and checks it against its schemas. An error is of type
// [Faults] and holds all faults of the file and the schemas.
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
		o.File = func(string) ([]byte, error) { return nil, errors.New("reading files is not supported here") }
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

// A loader turns the decoded parameters into the plan.
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

	warns      []expressionWarnings
	encryption stage.Args
	seenTags   map[string]bool // full names of records with tagged fields that are in use
}

// A topic is a Topic while the file is loaded.
type topic struct {
	*Topic
	name     expr.Source
	typed    bool          // it declares its types
	words    []expr.Source // the names of the declared types, in the order of Types
	unsure   bool          // some types are unknown because of another fault
	envelope bool          // it declares its envelope
	headers  expr.Source   // the name of its parameter headers; no line if not declared

	written *codec.Schema // the first type that a pipeline writes to it; nil if none does

	checked bool // the expressions of Bare were compiled
	bad     bool // and have faults

	keyFormat bool          // it declares the format of its keys
	tombstone expr.Source   // the name of its parameter tombstone; no line if not declared
	identity  []expr.Source // the words of its declared identity
	settled   bool          // its identity is known and checked

	badIdentity  bool   // its identity has faults
	identityFrom *topic // the topic that its identity is inherited from

	envelopeFrom *declared   // the pipeline whose input the envelope is inherited from
	headersFrom  *declared   // the pipeline whose input the headers are inherited from
	keysFrom     *declared   // the pipeline whose keys the format is inherited from
	holds        string      // exclusive use: asEvents, asDeadLetters, ...; "" if none yet
	use          expr.Source // the first place that gives it this use
}

// A declared is a pipeline or a projection while the file is loaded.
type declared struct {
	name expr.Source
	args stage.Args
	what string // name in messages: "pipeline enrich"

	pipeline   *Pipeline // nil for a projection
	targets    []target
	done       bool        // the pipeline is built, or cannot be built
	failed     bool        // the pipeline is part of a cycle
	passesNone string      // what keeps the pipeline from passing tombstones, by default; "" if nothing does
	projection *Projection // nil for a pipeline
}

var (
	topicName = regexp.MustCompile(`^[A-Za-z0-9._-]{1,249}$`)
	otherName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$`)
)

// checkName checks the name of an item that is not a topic. what is the kind of the
// item: "pipeline".
func (l *loader) checkName(what string, name expr.Source) {
	if !otherName.MatchString(name.Text) {
		l.at(name, "use letters, digits, dots, dashes and underscores, at most 100 characters, starting with a letter or a digit", "%q is not a valid %s name", name.Text, what)
	}
}

// checkTopicName checks the name of a topic by Kafka's rules.
func (l *loader) checkTopicName(name expr.Source) bool {
	if topicName.MatchString(name.Text) && name.Text != "." && name.Text != ".." {
		return true
	}
	l.at(name, "use letters, digits, dots, dashes and underscores, at most 249 characters", "%q is not a valid topic name", name.Text)
	return false
}

// file builds the plan. The order matters: projections may add topics, pipelines
// have to know all topics, tables and projections, and pipelines determine the types
// of the topics that projections read.
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
		l.declareTopic(item)
	}
	for _, item := range items("projections") {
		l.declareProjection(item)
	}
	l.declareEncryption(args)
	l.readSubjects()
	l.checkSimilarNames()
	for _, item := range items("tables") {
		l.declareTable(item)
	}
	for _, item := range items("pipelines") {
		l.declarePipeline(item)
	}
	l.findCycles()
	l.inheritRecords()
	l.buildPipelines()
	for _, p := range l.projections {
		l.buildProjection(p)
	}
	for _, t := range l.plan.Topics {
		l.checkBare(l.topics[t.Name])
		l.settleIdentity(l.topics[t.Name])
	}
	for _, t := range l.plan.Topics {
		if t.Headers == CloudEvents {
			t.Source = l.plan.Name
		}
	}
	l.checkEncryption()
	l.plan.hash = l.hash(args)
	l.findSettings(args)
}

// envKey identifies an environment of expressions. The constants follow from the
// schema, so only their presence is part of the key.
type envKey struct {
	schema *codec.Schema
	consts bool
	keys   keyformat.Format // of the records; they determine the type of the name key
}

// env returns the environment of expressions over events of a schema, in records with
// keys of a format. It is shared by all pipelines, because making one takes longer than
// compiling an expression.
func (l *loader) env(s *codec.Schema, consts map[string]string, keys keyformat.Format) (*expr.Env, error) {
	if keys.IsText() {
		keys = keyformat.Format{}
	}
	key := envKey{s, consts != nil, keys}
	if env := l.envs[key]; env != nil {
		return env, nil
	}
	env, err := expr.NewEnv(expr.Root{Schema: s, Consts: consts, Key: metadata.KeyOf(keys)})
	if err == nil {
		env.Clock = l.o.Clock
		l.envs[key] = env
	}
	return env, err
}
