package processor

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/codec"
	"millrace/pipeline/kafka"
	"millrace/pipeline/processor/chain"
	"millrace/pipeline/stage"
	"millrace/pipeline/topology"
	"millrace/pipeline/worker"
)

func ExplainCommand(e *cli.Env) *cobra.Command {
	x := &explainer{env: e}
	cmd := &cobra.Command{
		Use:   "explain [PIPELINE...]",
		Short: "Say what a worker with these flags would do: the resolved plan, without connecting",
		Long: `Explains pipelines, all if none is named: what each stage reads and writes, the
schemas before and after with their subjects, topics and their settings, the
guarantee, limits, and every permission on Kafka that a worker needs. It takes the
flags of run, and connects to nothing.

With --acls it prints the commands that give the permissions, and no more: without
any one of them a worker would not do its work, but for DescribeConfigs. Without
that one, it does not know how large the records of a topic may be.`,
		Example: `  processor explain
  processor explain enrich --json
  processor explain --acls --principal User:processor | sh`,
		Args: cobra.ArbitraryArgs,
		RunE: func(_ *cobra.Command, args []string) error { return x.run(args) },
	}
	flags := cmd.Flags()
	x.worker = worker.AddFlags(e, flags, "processor", worker.ProcessorListen)
	for _, name := range []string{"log-level", "log-format", "listen", "listen-file", "pprof", "registry", "registry-ca", "property", "command-config"} {
		flags.Lookup(name).Hidden = true // taken, so that the flags of run can be given as they are
	}
	flags.BoolVar(&x.asJSON, "json", false, "as JSON")
	flags.BoolVar(&x.acls, "acls", false, "print commands of kafka-acls.sh that give a worker what it needs")
	flags.StringVar(&x.principal, "principal", "User:processor", "`principal` to give permissions to, for --acls")
	return cmd
}

type explainer struct {
	env       *cli.Env
	worker    *worker.Flags
	asJSON    bool
	acls      bool
	principal string
}

// explanation is what --json prints.
type explanation struct {
	Topology  string         `json:"topology"`
	Hash      string         `json:"hash"`
	Pipelines []pipelinePlan `json:"pipelines"`
}

// pipelinePlan is a pipeline as a worker runs it.
type pipelinePlan struct {
	Name             string       `json:"name"`
	Guarantee        string       `json:"guarantee"`
	Reads            topicPlan    `json:"reads"`
	Stages           []stagePlan  `json:"stages"`
	Writes           []topicPlan  `json:"writes"`
	DeadLetters      topicPlan    `json:"dead_letters"`
	Receipts         *topicPlan   `json:"receipts,omitempty"`
	Tables           []tablePlan  `json:"tables"`
	State            []topicPlan  `json:"state"` // topics on which stages keep what they remember
	Schemas          []schemaPlan `json:"schemas"`
	Group            string       `json:"group"`
	TransactionalIDs []string     `json:"transactional_ids"`
	Limits           limitsPlan   `json:"limits"`
	ACLs             []acl        `json:"acls"`
}

type topicPlan struct {
	Name        string            `json:"name"`
	Partitions  int               `json:"partitions"`
	Replication int               `json:"replication,omitempty"` // 0: the brokers decide
	Config      map[string]string `json:"config,omitempty"`
	Types       []string          `json:"types,omitempty"` // that are read from it, or written to it
}

type tablePlan struct {
	Name   string `json:"name"`
	Topic  string `json:"topic,omitempty"`
	File   string `json:"file,omitempty"`
	Schema string `json:"schema"`
}

type stagePlan struct {
	Name    string      `json:"name"`
	Kind    string      `json:"kind"`
	On      []string    `json:"on"`  // event types
	All     bool        `json:"all"` // that come here
	Reads   []fieldPlan `json:"reads"`
	Writes  []fieldPlan `json:"writes"`
	Stops   []string    `json:"stops,omitempty"`  // types of which it lets no event pass
	Routes  []string    `json:"routes,omitempty"` // topics it may choose
	OnError string      `json:"on_error"`
	Holds   string      `json:"holds,omitempty"` // how long it may hold up a batch
	State   string      `json:"state,omitempty"` // its topic
}

// fieldPlan is a field that a stage uses, and in which types; all if there are
// none.
type fieldPlan struct {
	Path  string   `json:"path"`
	Types []string `json:"types,omitempty"`
}

type schemaPlan struct {
	Type   string   `json:"type"`
	Reads  string   `json:"reads"`            // subject
	Writes []string `json:"writes,omitempty"` // subjects; none if no event of the type comes out
	Adds   []string `json:"adds,omitempty"`   // fields that the pipeline adds
}

// limitsPlan is what bounds a worker. Durations are written as Go does.
type limitsPlan struct {
	Sessions           int    `json:"sessions"`
	CommitInterval     string `json:"commit_interval"`
	TransactionTimeout string `json:"transaction_timeout"`
	SessionTimeout     string `json:"session_timeout"`
	HoldsUp            string `json:"holds_up,omitempty"`
	RecordBytes        int    `json:"record_bytes"` // where a topic does not say what it takes
	MemoryBytes        int    `json:"memory_bytes"`
}

func (x *explainer) run(names []string) error {
	t, err := x.worker.Topology.Load(x.env)
	if err != nil {
		return err
	}
	pipelines, err := worker.Select(t, x.worker.Topology.File, names)
	if err != nil {
		return err
	}
	if x.worker.Instance == "" {
		if x.worker.Instance, err = os.Hostname(); err != nil {
			x.worker.Instance = "HOST"
		}
	}
	w := &worker.Worker{Flags: x.worker, Topology: t}
	out := explanation{Topology: t.Name, Hash: t.Hash(), Pipelines: []pipelinePlan{}}
	for _, pl := range pipelines {
		out.Pipelines = append(out.Pipelines, explainPipeline(w, pl))
	}
	switch {
	case x.acls:
		return x.printACLs(out)
	case x.asJSON:
		return cli.PrintJSON(x.env.Stdout, out)
	}
	pr := cli.Printer{Out: x.env.Stdout}
	for i := range out.Pipelines {
		if i > 0 {
			pr.Line("")
		}
		printPipeline(&pr, &out.Pipelines[i])
	}
	return pr.Err
}

// explainPipeline returns how this worker would run a pipeline.
func explainPipeline(w *worker.Worker, pl *topology.Pipeline) pipelinePlan {
	loop := w.LoopConfig(pl.Name, nil)
	create := !w.Flags.NoCreate
	plan := pipelinePlan{
		Name: pl.Name, Guarantee: pl.Guarantee, Group: loop.Group,
		Reads:       newTopicPlan(pl.From),
		DeadLetters: newTopicPlan(pl.DeadLetter),
		Tables:      []tablePlan{}, State: []topicPlan{}, TransactionalIDs: []string{},
		Limits: limitsPlan{
			Sessions: loop.Sessions, CommitInterval: loop.CommitInterval.String(), TransactionTimeout: loop.TransactionTimeout.String(),
			SessionTimeout: loop.SessionTimeout.String(), RecordBytes: kafka.Limits(nil).Record(""), MemoryBytes: cmp.Or(loop.Memory, kafka.DefaultMemory),
		},
		ACLs: pipelineACLs(w.Topology, pl, create),
	}
	if pl.Receipts != nil {
		receipts := newTopicPlan(pl.Receipts)
		plan.Receipts = &receipts
	}
	for _, s := range pl.Types {
		plan.Reads.Types = append(plan.Reads.Types, s.ShortName())
	}
	if hold := chain.HoldTime(pl); hold > 0 {
		plan.Limits.HoldsUp = hold.String()
	}
	if pl.Guarantee == topology.ExactlyOnce {
		for i := range loop.Sessions {
			plan.TransactionalIDs = append(plan.TransactionalIDs, fmt.Sprintf("%s-%s-%d", loop.Group, loop.Instance, i))
		}
	}
	for _, topic := range pl.Writes() {
		written := newTopicPlan(topic)
		for i, targets := range pl.Targets {
			if slices.Contains(targets, topic) {
				written.Types = append(written.Types, pl.Types[i].ShortName())
			}
		}
		plan.Writes = append(plan.Writes, written)
	}
	for _, t := range chain.TablesOf(w.Topology, pl) {
		one := tablePlan{Name: t.Name, File: t.File, Schema: t.Schema.Name()}
		if t.Topic != nil {
			one.Topic = t.Topic.Name
		}
		plan.Tables = append(plan.Tables, one)
	}
	for _, s := range chain.StateTopics(w.Topology, pl, pl.From.Partitions) {
		plan.State = append(plan.State, topicPlan{Name: s.Name, Partitions: s.Partitions, Replication: s.Replication, Config: s.Config})
	}
	come := map[string]bool{} // types of which events come to a stage
	for _, s := range pl.Types {
		come[s.ShortName()] = true
	}
	for _, s := range pl.Stages {
		one := newStagePlan(w.Topology, pl, s)
		one.All = len(one.On) == len(come)
		for _, typ := range one.Stops {
			delete(come, typ)
		}
		plan.Stages = append(plan.Stages, one)
	}
	for i := range pl.Types {
		plan.Schemas = append(plan.Schemas, newSchemaPlan(pl, i))
	}
	return plan
}

func newTopicPlan(t *topology.Topic) topicPlan {
	return topicPlan{Name: t.Name, Partitions: t.Partitions, Replication: t.Replication, Config: t.Config}
}

func newStagePlan(t *topology.Topology, pl *topology.Pipeline, s topology.Stage) stagePlan {
	plan := stagePlan{Name: s.Name, Kind: s.Kind.Name, On: []string{}, OnError: onErrorText(s.OnError)}
	reads, writes := newFieldUses(), newFieldUses()
	for i, on := range s.On {
		if !on {
			continue
		}
		name := pl.Types[i].ShortName()
		plan.On = append(plan.On, name)
		reads.add(name, s.Built.Reads(i))
		writes.add(name, s.Built.Writes(i))
		if gate, ok := s.Built.(stage.Gate); ok && !gate.Passes(i) {
			plan.Stops = append(plan.Stops, name)
		}
	}
	plan.Reads, plan.Writes = reads.plans(len(plan.On)), writes.plans(len(plan.On))
	if router, ok := s.Built.(stage.Router); ok {
		plan.Routes = router.Topics()
	}
	if holder, ok := s.Built.(stage.Holder); ok && holder.Holds() > 0 {
		plan.Holds = holder.Holds().String()
	}
	if _, ok := s.Built.(stage.Keeper); ok {
		plan.State = chain.StateTopic(t, pl, s.Name)
	}
	return plan
}

func onErrorText(o pipeline.OnError) string {
	switch o {
	case pipeline.Skip:
		return "skip"
	case pipeline.Stop:
		return "stop"
	}
	return "dead_letter"
}

// fieldUses collects fields, and of which types.
type fieldUses struct{ types map[string][]string }

func newFieldUses() fieldUses { return fieldUses{map[string][]string{}} }

func (u fieldUses) add(typ string, paths [][]string) {
	for _, path := range paths {
		name := strings.Join(path, ".")
		if !slices.Contains(u.types[name], typ) {
			u.types[name] = append(u.types[name], typ)
		}
	}
}

// plans returns the fields. Those of all of so many types do not name them.
func (u fieldUses) plans(all int) []fieldPlan {
	out := []fieldPlan{}
	for _, path := range slices.Sorted(maps.Keys(u.types)) {
		f := fieldPlan{Path: path}
		if len(u.types[path]) < all {
			f.Types = u.types[path]
		}
		out = append(out, f)
	}
	return out
}

func newSchemaPlan(pl *topology.Pipeline, typ int) schemaPlan {
	in, out := pl.Types[typ], pl.Output[typ]
	plan := schemaPlan{Type: in.ShortName(), Reads: codec.Subject(pl.From.Name, in)}
	for _, t := range pl.Targets[typ] {
		plan.Writes = append(plan.Writes, codec.Subject(t.Name, out))
	}
	addedFields("", in.Root(), out.Root(), 0, &plan.Adds)
	return plan
}

// addedFields appends the fields of records that are not in the schema before.
func addedFields(path string, before, after *codec.Node, depth int, added *[]string) {
	const deepest = 32 // a record may be part of itself
	if before == nil || before.Kind != codec.Record || after.Kind != codec.Record || depth > deepest {
		return
	}
	for i := range after.Fields {
		f := &after.Fields[i]
		if have := before.Field(f.Name); have != nil {
			addedFields(path+f.Name+".", have.Type, f.Type, depth+1, added)
		} else {
			*added = append(*added, fmt.Sprintf("%s%s: %s", path, f.Name, f.Type))
		}
	}
}

// An acl is a permission on Kafka.
type acl struct {
	Operation string `json:"operation"`
	Resource  string `json:"resource"` // topic, group, transactional-id
	Name      string `json:"name"`
	Pattern   string `json:"pattern"` // literal, prefixed
	For       string `json:"for"`     // what it is needed for
	Optional  bool   `json:"optional,omitempty"`
}

// pipelineACLs returns the permissions that a worker of a pipeline needs, and no
// others but those that are marked as optional. READ and WRITE imply DESCRIBE. An
// idempotent producer needs no permission of its own on brokers from 2.8 on (KIP-679).
func pipelineACLs(t *topology.Topology, pl *topology.Pipeline, create bool) (acls []acl) {
	add := func(operation, resource, name, why string) {
		same := func(a acl) bool { return a.Operation == operation && a.Resource == resource && a.Name == name }
		if !slices.ContainsFunc(acls, same) {
			acls = append(acls, acl{Operation: operation, Resource: resource, Name: name, Pattern: "literal", For: why, Optional: operation == "DescribeConfigs"})
		}
	}
	write := func(topic, what string) {
		add("Write", "topic", topic, what)
		add("DescribeConfigs", "topic", topic, "optional: how large its records may be")
	}
	topics := append(append([]*topology.Topic{pl.From}, pl.SideTopics()...), pl.Writes()...)
	add("Read", "topic", pl.From.Name, "events")
	for _, to := range pl.Writes() {
		write(to.Name, "what passes")
	}
	write(pl.DeadLetter.Name, "dead letters")
	if pl.Receipts != nil {
		write(pl.Receipts.Name, "receipts")
	}
	for _, table := range chain.TablesOf(t, pl) {
		if table.Topic != nil {
			add("Read", "topic", table.Topic.Name, "table "+table.Name)
			topics = append(topics, table.Topic)
		}
	}
	names := []string{}
	for _, topic := range topics {
		names = append(names, topic.Name)
	}
	for _, s := range chain.StateTopics(t, pl, 0) {
		add("Read", "topic", s.Name, "state")
		add("Write", "topic", s.Name, "state")
		add("Delete", "topic", s.Name, "state that has served: its records")
		names = append(names, s.Name)
	}
	group := t.Name + "-" + pl.Name
	add("Read", "group", group, "sharing the work, and offsets")
	if pl.Guarantee == topology.ExactlyOnce {
		acls = append(acls, acl{Operation: "Write", Resource: "transactional-id", Name: group + "-", Pattern: "prefixed", For: "transactions of every instance"})
	}
	if create {
		for _, name := range names {
			add("Create", "topic", name, "creating it, if it is not there")
		}
	}
	return acls
}

// printACLs prints commands that give the permissions of all pipelines.
func (x *explainer) printACLs(out explanation) error {
	brokers := strings.Join(x.worker.Kafka.Brokers, ",")
	brokers = cmp.Or(brokers, x.env.Getenv(kafka.EnvName("brokers")), kafka.DefaultBroker)
	type resource struct{ kind, name, pattern string }
	var order []resource
	operations := map[resource][]string{}
	for _, pl := range out.Pipelines {
		for _, a := range pl.ACLs {
			r := resource{a.Resource, a.Name, a.Pattern}
			if operations[r] == nil {
				order = append(order, r)
			}
			if !slices.Contains(operations[r], a.Operation) {
				operations[r] = append(operations[r], a.Operation)
			}
		}
	}
	p := cli.Printer{Out: x.env.Stdout}
	for _, r := range order {
		line := "kafka-acls.sh --bootstrap-server " + shellWord(brokers) + " --add --allow-principal " + shellWord(x.principal)
		for _, operation := range operations[r] {
			line += " --operation " + operation
		}
		line += " --" + r.kind + " " + shellWord(r.name)
		if r.pattern == "prefixed" {
			line += " --resource-pattern-type prefixed"
		}
		p.Line("%s", line)
	}
	return p.Err
}

// shellWord returns a text as one word for a shell.
func shellWord(text string) string {
	plain := strings.IndexFunc(text, func(r rune) bool {
		return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.,:/=@%+", r)
	}) < 0
	if plain && text != "" {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}

// printPipeline prints a plan for people.
func printPipeline(p *cli.Printer, pl *pipelinePlan) {
	const column = 16
	item := func(name, format string, args ...any) { p.Item("  "+name, column, fmt.Sprintf(format, args...)) }
	p.Line("Pipeline %s", pl.Name)
	if pl.Guarantee == topology.ExactlyOnce {
		item("guarantee", "exactly_once: outputs, dead letters, state and offsets are committed in one transaction")
	} else {
		item("guarantee", "at_least_once: after a crash, events may be written again")
	}
	item("reads", "%s", pl.Reads.text())
	for _, t := range pl.Writes {
		item("writes", "%s", t.text())
	}
	item("dead letters", "%s", pl.DeadLetters.text())
	if pl.Receipts != nil {
		item("receipts", "%s", pl.Receipts.text())
	}
	for _, t := range pl.Tables {
		from := t.Topic
		if from == "" {
			from = "the file " + t.File
		}
		item("table", "%s: rows of %s from %s, all of them in memory", t.Name, t.Schema, from)
	}
	for _, t := range pl.State {
		item("state", "%s", t.text())
	}
	p.Line("")
	printStages(p, pl.Stages)
	p.Line("Schemas")
	for _, s := range pl.Schemas {
		p.Line("  %s", s.Type)
		p.Line("    read     %s", s.Reads)
		for _, subject := range s.Writes {
			p.Line("    written  %s", subject)
		}
		if len(s.Writes) == 0 {
			p.Line("    not written: no event of this type comes out")
		}
		for _, field := range s.Adds {
			p.Line("    added    %s", field)
		}
	}
	p.Line("")
	p.Line("Limits")
	p.Item("  sessions", 24, cli.Plural(pl.Limits.Sessions, "member")+" of the group in this process")
	p.Item("  commit interval", 24, pl.Limits.CommitInterval)
	if pl.Guarantee == topology.ExactlyOnce {
		p.Item("  transaction timeout", 24, pl.Limits.TransactionTimeout+": how long a crashed worker's partitions wait")
	}
	p.Item("  session timeout", 24, pl.Limits.SessionTimeout)
	if pl.Limits.HoldsUp != "" {
		p.Item("  waits of stages", 24, "up to "+pl.Limits.HoldsUp+" in a batch")
	}
	p.Item("  record", 24, fmt.Sprintf("key, value and headers: the topic's max.message.bytes less 512, or %s where that cannot be read; at most a quarter of a session's memory, and 64 MiB", cli.GroupDigits(int64(pl.Limits.RecordBytes))))
	p.Item("  memory", 24, fmt.Sprintf("%d MiB for records at work; tables and state come on top", pl.Limits.MemoryBytes>>20))
	p.Line("")
	p.Line("On Kafka")
	p.Item("  group", 24, pl.Group)
	for i, id := range pl.TransactionalIDs {
		name := ""
		if i == 0 {
			name = "  transactional ids"
		}
		p.Item(name, 24, id)
	}
	for _, a := range pl.ACLs {
		name := a.Name
		if a.Pattern == "prefixed" {
			name += "*"
		}
		p.Line("  allow %-15s %-16s %s  (%s)", a.Operation, a.Resource, name, a.For)
	}
}

func printStages(p *cli.Printer, stages []stagePlan) {
	p.Line("Stages")
	if len(stages) == 0 {
		p.Line("  none: events are copied")
	}
	width := 0
	for _, s := range stages {
		width = max(width, len(s.Name))
	}
	for i, s := range stages {
		on := "all types"
		if !s.All {
			on = strings.Join(s.On, ", ")
		}
		head := fmt.Sprintf("  %d. %-*s ", i+1, width, s.Name)
		p.Item(head, len(head), fmt.Sprintf("%-7s %s", s.Kind, "on "+on))
		detail := func(name, text string) {
			if text != "" {
				p.Item("     "+name, 16, text)
			}
		}
		detail("reads", fieldsText(s.Reads))
		detail("writes", fieldsText(s.Writes))
		detail("stops", strings.Join(s.Stops, ", "))
		detail("routes to", strings.Join(s.Routes, ", "))
		detail("state on", s.State)
		if s.Holds != "" {
			detail("waits", "up to "+s.Holds+" in a batch")
		}
		if s.OnError != "dead_letter" {
			detail("on error", s.OnError)
		}
	}
	p.Line("")
}

func fieldsText(fields []fieldPlan) string {
	texts := make([]string, len(fields))
	for i, f := range fields {
		texts[i] = f.Path
		if f.Types != nil {
			texts[i] += " (" + strings.Join(f.Types, ", ") + ")"
		}
	}
	return strings.Join(texts, ", ")
}

func (t *topicPlan) text() string {
	text := fmt.Sprintf("%s, %s", t.Name, cli.Plural(t.Partitions, "partition"))
	if t.Replication > 0 {
		text += fmt.Sprintf(" on %s each", cli.Plural(t.Replication, "broker"))
	}
	for _, name := range slices.Sorted(maps.Keys(t.Config)) {
		text += ", " + name + "=" + t.Config[name]
	}
	if len(t.Types) > 0 {
		text += ": " + strings.Join(t.Types, ", ")
	}
	return text
}
