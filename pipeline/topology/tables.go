package topology

import (
	"slices"
	"strings"

	"millrace/pipeline/codec"
	"millrace/pipeline/expr"
	"millrace/pipeline/expr/within"
	"millrace/pipeline/stage"
)

// declareTable adds a table to the plan.
func (l *loader) declareTable(item stage.Item) {
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
		l.at(file.Key, "remove one of them", "%s has both topic and file", what)
	case isTopic:
		if keyed {
			l.at(key.Key, "remove key", "a table of a topic has no key: the key of a row is the record's key")
		}
		if typed {
			l.at(schema.Key, "remove schema", "a table of a topic has no schema: the rows have the type of the topic")
		}
		l.topicTable(table, item)
	case isFile:
		table.File = file.Value.Text
		l.fileTable(table, what, item, file.Value)
	default:
		l.at(item.Key, "add topic: NAME or file: PATH", "%s has neither topic nor file", what)
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
		i := slices.IndexFunc(l.projections, func(d *declared) bool { return d.projection == t.Snapshots })
		if i < 0 {
			return
		}
		if state, ok := l.projections[i].args.Find("state"); ok {
			table.Schema, _, _ = l.schemas.find(state.Value.Text)
		}
	case len(t.Types) == 1:
		table.Schema = t.Types[0]
		if !strings.Contains(t.Config["cleanup.policy"], "compact") {
			l.at(arg.Value, "set config: {cleanup.policy: compact} on the topic", "%s cannot be a table: it is not compacted, so Kafka deletes current rows", t.Name)
		}
	case !t.unsure:
		l.at(arg.Value, "the topic of a table must hold the snapshots of a projection, or declare a single type", "%s cannot be a table: it has %d types", t.Name, len(t.Types))
	}
}

func (l *loader) fileTable(table *Table, what string, item stage.Item, file expr.Source) {
	key, keyed := item.Args.Find("key")
	schema, typed := item.Args.Find("schema")
	if !keyed {
		l.at(item.Key, "add key: FIELD, the field that holds a row's key", "%s has no key", what)
	}
	if !typed {
		l.at(item.Key, "add schema: NAME, the record that describes a row", "%s has no schema", what)
	} else if s, msg, hint := l.schemas.find(schema.Value.Text); s != nil {
		table.Schema = s
		if tagged, _ := s.Tagged(); len(tagged) > 0 {
			l.at(schema.Value, "use a schema without tagged fields", "%s is a file, which cannot be encrypted, but %s has tagged fields", what, s.Name())
		}
	} else if msg != "" {
		l.at(schema.Value, hint, "%s", msg)
	}
	if keyed && table.Schema != nil {
		table.Key = key.Value.Text
		if f, fault := within.FieldAt(table.Schema, strings.Split(table.Key, ".")); fault != nil || f.Node.NotNull().Kind != codec.String {
			l.at(key.Value, "name a field of type string", "%s has no string field %s", table.Schema.Name(), table.Key)
		}
	}
	if i := strings.LastIndexByte(table.File, '.'); i < 0 || !slices.Contains([]string{"json", "jsonl", "csv"}, table.File[i+1:]) {
		l.at(file, "use a file name that ends in .json, .jsonl or .csv", "%s is not a file of rows", table.File)
		return
	}
	text, err := l.o.File(table.File)
	if err != nil {
		l.at(file, "", "cannot read %s: %v", table.File, err)
	}
	table.Text = text
}
