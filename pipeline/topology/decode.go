package topology

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"millrace/pipeline/expr"
	"millrace/pipeline/stage"
	"millrace/pipeline/topology/align"
)

// source returns the scalar in the form that other packages use.
func (s *scalar) source() expr.Source {
	return expr.Source{Text: s.text, Line: s.start.Line, Col: s.start.Col}
}

// resolve follows an alias. It counts nodes, because aliases of aliases could expand
// a file of a few lines without bound. It returns nil, with a fault, beyond the limit
// and for a tagged node.
func (d *document) resolve(n *yaml.Node) *yaml.Node {
	for n != nil && n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if n == nil {
		return nil
	}
	if d.values++; d.values > maxValues {
		if d.values == maxValues+1 {
			d.whole("", "more than %d names and values; each use of an alias counts", maxValues)
		}
		return nil
	}
	if n.Style&yaml.TaggedStyle != 0 {
		d.fault(align.At(n.Line, n.Column), "put a value that starts with ! in quotes", "tags are not supported: %s", n.Tag)
		return nil
	}
	return n
}

func isEmpty(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && n.Tag == "!!null"
}

// nodeWord describes a node in messages.
func nodeWord(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "a mapping"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case isEmpty(n):
		return "nothing"
	}
	return "a single value"
}

// formWord describes the expected form of a parameter in messages.
func formWord(p stage.Param) string {
	switch p.Form {
	case stage.Expression:
		return "an expression"
	case stage.Assignments:
		return "a mapping from paths to expressions"
	case stage.Words:
		return "a list of names"
	case stage.Number:
		return "a whole number"
	case stage.Duration:
		return "a duration"
	case stage.Flag:
		return "true or false"
	case stage.Texts:
		return "a mapping from names to values"
	case stage.Group:
		return strings.Join(append(slices.Clone(p.Values), "a mapping"), " or ")
	case stage.Named:
		return "a mapping from names to mappings"
	case stage.Cases, stage.Choices:
		return "a list of mappings"
	}
	return "a single value"
}

// formExample returns an example value of a parameter for hints.
func formExample(p stage.Param) string {
	switch p.Form {
	case stage.Expression:
		return "EXPRESSION"
	case stage.Assignments:
		return "{PATH: EXPRESSION}"
	case stage.Words:
		return "[NAME, ...]"
	case stage.Number:
		return "NUMBER"
	case stage.Duration:
		return "10m"
	case stage.Flag:
		return "true"
	case stage.Texts:
		return "{NAME: VALUE}"
	case stage.Group:
		return strings.Join(append(slices.Clone(p.Values), "{...}"), " or ")
	case stage.Named:
		return "{NAME: {...}}"
	case stage.Cases, stage.Choices:
		return "[{...}, ...]"
	}
	if len(p.Values) > 0 {
		return strings.Join(p.Values, " or ")
	}
	return "NAME"
}

// args decodes a mapping of params. A missing parameter is reported at at, and what
// names the mapping in messages: "topic shop.events". ok is false if there were
// faults. Faulty values are left out then; a list or mapping keeps its sound items,
// so the caller can check these.
func (d *document) args(n *yaml.Node, at expr.Source, what string, params []stage.Param) (args stage.Args, ok bool) {
	before := len(d.faults)
	given := map[string]align.Place{}
	if n = d.resolve(n); n == nil {
		return nil, false
	}
	switch {
	case n.Kind == yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			if arg, ok := d.arg(n.Content[i], n.Content[i+1], what, params, given); ok {
				args = append(args, arg)
			}
		}
	case !isEmpty(n):
		d.fault(align.At(n.Line, n.Column), paramNames(params), "%s must be a mapping, not %s", what, nodeWord(n))
		return nil, false
	}
	for _, p := range params {
		if _, ok := given[p.Name]; ok {
			continue
		}
		if p.Required {
			first, _, _ := strings.Cut(p.Doc, ". ")
			d.at(at, fmt.Sprintf("add %s: %s. %s.", p.Name, formExample(p), strings.TrimSuffix(first, ".")), "%s has no %s", what, p.Name)
		}
		if p.Default != "" {
			// A default is a constant of the program, so decoding it does not fail.
			def := stage.Arg{Name: p.Name, Key: at, Value: expr.Source{Text: p.Default, Line: at.Line, Col: at.Col}}
			d.text(&def, p, &scalar{text: p.Default, start: align.At(at.Line, at.Col), plain: true})
			args = append(args, def)
		}
	}
	return args, len(d.faults) == before
}

func paramNames(params []stage.Param) string {
	names := make([]string, len(params))
	for i, p := range params {
		names[i] = p.Name
	}
	if len(names) == 0 {
		return "no parameters are allowed here"
	}
	return "allowed parameters: " + strings.Join(names, ", ")
}

// key decodes the name before a colon. given holds the names of the mapping so far.
func (d *document) key(n *yaml.Node, given map[string]align.Place) (*scalar, bool) {
	if n = d.resolve(n); n == nil {
		return nil, false
	}
	if n.Kind != yaml.ScalarNode {
		d.fault(align.At(n.Line, n.Column), "put a name that starts with [ or { in quotes", "expected a name, not %s", nodeWord(n))
		return nil, false
	}
	s := d.scalar(n)
	if s.text == "" {
		d.fault(s.start, "", "the name before the colon is empty")
		return nil, false
	}
	if first, twice := given[s.text]; twice {
		d.fault(s.start, "remove one of them", duplicate, s.text, first.Line, first.Col)
		return nil, false
	}
	given[s.text] = s.start
	return s, true
}

// duplicate is the format of the fault for a name that is given twice. Its
// arguments are the name, and the line and column of the first one.
const duplicate = "duplicate %s; the first one is at %d:%d"

func (d *document) arg(key, value *yaml.Node, what string, params []stage.Param, given map[string]align.Place) (stage.Arg, bool) {
	name, ok := d.key(key, given)
	if !ok {
		return stage.Arg{}, false
	}
	i := slices.IndexFunc(params, func(p stage.Param) bool { return p.Name == name.text })
	if i < 0 {
		names := make([]string, len(params))
		for i := range params {
			names[i] = params[i].Name
		}
		hint := expr.Suggest(name.text, names)
		switch {
		case name.text == "<<":
			hint = "YAML merge keys are not supported: repeat the merged keys, or use an alias for a whole value"
		case hint == "":
			hint = paramNames(params)
		}
		d.fault(name.start, hint, "%s has no parameter %q", what, name.text)
		return stage.Arg{}, false
	}
	arg := stage.Arg{Name: name.text, Key: name.source()}
	ok = d.value(&arg, params[i], value)
	return arg, ok
}

// value decodes the value of a parameter. It returns false if there is no value to
// use.
func (d *document) value(arg *stage.Arg, p stage.Param, n *yaml.Node) bool {
	if n = d.resolve(n); n == nil {
		return false
	}
	wrong := func() bool {
		if isEmpty(n) {
			d.at(arg.Key, p.Name+": "+formExample(p), "%s is empty", p.Name)
			return false
		}
		hint := p.Name + ": " + formExample(p)
		if p.Form == stage.Expression {
			hint = "put an expression that starts with { or [ in quotes"
		}
		d.fault(align.At(n.Line, n.Column), hint, "%s must be %s, not %s", p.Name, formWord(p), nodeWord(n))
		return false
	}
	switch p.Form {
	case stage.Assignments, stage.Texts, stage.Named:
		if n.Kind != yaml.MappingNode {
			return wrong()
		}
		d.entries(arg, p, n)
		return true
	case stage.Words, stage.Cases, stage.Choices:
		if n.Kind != yaml.SequenceNode {
			return wrong()
		}
		d.list(arg, p, n)
		return true
	case stage.Group:
		if n.Kind == yaml.ScalarNode && slices.Contains(p.Values, n.Value) {
			arg.Value = d.scalar(n).source()
			return true
		}
		if n.Kind != yaml.MappingNode && !isEmpty(n) {
			return wrong()
		}
		args, ok := d.args(n, arg.Key, p.Name, p.Params)
		arg.Items = []stage.Item{d.item(arg.Key, args, ok)}
		return true
	}
	if n.Kind != yaml.ScalarNode || isEmpty(n) && (p.Form != stage.Expression || n.Value == "") {
		return wrong() // the word null is a valid expression
	}
	s := d.scalar(n)
	arg.Value = s.source()
	return d.text(arg, p, s)
}

// item returns an item of a list or mapping, and records whether it has faults.
func (d *document) item(key expr.Source, args stage.Args, ok bool) stage.Item {
	if !ok {
		d.faulty[align.At(key.Line, key.Col)] = true
	}
	return stage.Item{Key: key, Args: args}
}

// entries decodes a mapping whose names are not fixed.
func (d *document) entries(arg *stage.Arg, p stage.Param, n *yaml.Node) {
	given := map[string]align.Place{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, ok := d.key(n.Content[i], given)
		if !ok {
			continue
		}
		if p.Form == stage.Named {
			args, ok := d.args(n.Content[i+1], key.source(), itemWord(p, key.text), p.Params)
			arg.Items = append(arg.Items, d.item(key.source(), args, ok))
			continue
		}
		value := d.resolve(n.Content[i+1])
		switch {
		case value == nil:
		case value.Kind != yaml.ScalarNode:
			hint := ""
			if p.Form == stage.Assignments {
				hint = "put an expression that starts with { or [ in quotes"
			}
			d.fault(align.At(value.Line, value.Column), hint, "%s must be %s, not %s", key.text, entryWord(p), nodeWord(value))
		case isEmpty(value) && value.Value == "":
			d.fault(key.start, "", "%s is empty", key.text)
		default:
			arg.Entries = append(arg.Entries, stage.Entry{Key: key.source(), Value: d.scalar(value).source()})
		}
	}
}

func entryWord(p stage.Param) string {
	if p.Form == stage.Assignments {
		return "an expression"
	}
	return "a single value"
}

// itemWord names an item of a Named parameter in messages: an item of topics is a
// topic.
func itemWord(p stage.Param, name string) string {
	return strings.TrimSuffix(p.Name, "s") + " " + name
}

// list decodes a list of words, cases or choices.
func (d *document) list(arg *stage.Arg, p stage.Param, n *yaml.Node) {
	given := map[string]align.Place{}
	for _, item := range n.Content {
		item := d.resolve(item)
		if item == nil {
			continue
		}
		at := align.At(item.Line, item.Column)
		switch p.Form {
		case stage.Words:
			if item.Kind != yaml.ScalarNode || isEmpty(item) {
				d.fault(at, p.Name+": "+formExample(p), "%s must contain names, not %s", p.Name, nodeWord(item))
				continue
			}
			s := d.scalar(item)
			if first, twice := given[s.text]; twice {
				d.fault(s.start, "remove one of them", duplicate, s.text, first.Line, first.Col)
				continue
			}
			given[s.text] = s.start
			if d.allowed(p, s) {
				arg.Words = append(arg.Words, s.source())
			}
		case stage.Cases:
			key := expr.Source{Line: at.Line, Col: at.Col}
			args, ok := d.args(item, key, "an item of "+p.Name, p.Params)
			arg.Items = append(arg.Items, d.item(key, args, ok))
		case stage.Choices:
			arg.Items = append(arg.Items, d.choice(p, item))
		}
	}
}

// choice decodes a mapping of a single name to its parameters. If the node has
// another form, the returned item has no arguments.
func (d *document) choice(p stage.Param, n *yaml.Node) stage.Item {
	at := align.At(n.Line, n.Column)
	item := stage.Item{Key: expr.Source{Line: at.Line, Col: at.Col}}
	names := make([]string, len(p.Params))
	for i := range p.Params {
		names[i] = p.Params[i].Name
	}
	one := strings.TrimSuffix(p.Name, "s")
	if n.Kind != yaml.MappingNode || len(n.Content) == 0 {
		describe := nodeWord(n)
		if n.Kind == yaml.MappingNode {
			describe = "an empty mapping"
		}
		d.fault(at, "- filter: {keep: EXPRESSION}", "a %s must be a mapping with a single name, not %s", one, describe)
		return item
	}
	key, ok := d.key(n.Content[0], map[string]align.Place{})
	if !ok {
		return item
	}
	item.Key = key.source()
	i := slices.Index(names, key.text)
	if i < 0 {
		hint := expr.Suggest(key.text, names)
		if hint == "" {
			hint = "choose one of " + strings.Join(names, ", ")
		}
		d.fault(key.start, hint, "unknown %s %q", one, key.text)
		return item
	}
	if len(n.Content) > 2 {
		second := n.Content[2]
		d.fault(align.At(second.Line, second.Column), "indent the parameters of "+key.text+" below it, or start the next "+one+" with a dash", "a %s has a single name, but this is a second one", one)
		return item
	}
	args, ok := d.args(n.Content[1], item.Key, key.text, p.Params[i].Params)
	item.Args = stage.Args{{Name: key.text, Key: item.Key, Items: []stage.Item{d.item(item.Key, args, ok)}}}
	return item
}

// allowed checks a word against the values that a parameter allows.
func (d *document) allowed(p stage.Param, s *scalar) bool {
	if s.text == "" {
		d.fault(s.start, "", "%s is empty", p.Name)
		return false
	}
	if len(p.Values) == 0 || slices.Contains(p.Values, s.text) {
		return true
	}
	hint := expr.Suggest(s.text, p.Values)
	if hint == "" {
		hint = "allowed values: " + strings.Join(p.Values, ", ")
	}
	d.fault(s.start, hint, "%s cannot be %q", p.Name, s.text)
	return false
}

// text decodes a single value by the form of its parameter.
func (d *document) text(arg *stage.Arg, p stage.Param, s *scalar) bool {
	if s.broken {
		return false
	}
	unquoted := s.plain || s.expanded
	switch p.Form {
	case stage.Word:
		return d.allowed(p, s)
	case stage.Expression:
		return true
	case stage.Number:
		n, err := strconv.ParseInt(s.text, 10, 64)
		switch {
		case err != nil || !unquoted:
			d.fault(s.start, "write the number in digits, without quotes", "%s must be a whole number, not %q", p.Name, s.text)
			return false
		case n < p.Min || n > p.Max:
			d.fault(s.start, "", "%s must be from %d to %d, not %d", p.Name, p.Min, p.Max, n)
			return false
		}
		arg.Number = n
	case stage.Flag:
		if s.text != "true" && s.text != "false" || !unquoted {
			d.fault(s.start, "write true or false, without quotes", "%s must be true or false, not %q", p.Name, s.text)
			return false
		}
		arg.Flag = s.text == "true"
	case stage.Duration:
		v, ok := parseDuration(s.text)
		if !ok {
			d.fault(s.start, "write numbers with units, such as 250ms, 10m, 1h30m or 7d", "%s must be a duration, not %q", p.Name, s.text)
			return false
		}
		arg.Duration = v
	}
	return true
}

var daysBefore = regexp.MustCompile(`^([0-9]{1,5})d(.*)$`)

// parseDuration parses a duration in the format of time.ParseDuration, with an
// optional number of days (7d) in front. Negative durations and signs are invalid.
func parseDuration(text string) (time.Duration, bool) {
	var days time.Duration
	if m := daysBefore.FindStringSubmatch(text); m != nil {
		n, err := strconv.Atoi(m[1])
		if err != nil {
			return 0, false
		}
		days = time.Duration(n) * 24 * time.Hour
		if text = m[2]; text == "" {
			return days, true
		}
	}
	v, err := time.ParseDuration(text)
	if err != nil || v < 0 || strings.ContainsAny(text, "+-") || days+v < 0 {
		return 0, false
	}
	return days + v, true
}
