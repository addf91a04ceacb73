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
)

// source is a scalar as others see it.
func (s *scalar) source() expr.Source {
	return expr.Source{Text: s.text, Line: s.start.line, Col: s.start.col}
}

// resolve follows an alias. It counts, so that aliases of aliases do not make a
// file of a few lines endless; nil says that it has gone too far.
func (d *document) resolve(n *yaml.Node) *yaml.Node {
	for n != nil && n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if n == nil {
		return nil
	}
	if d.values++; d.values > maxValues {
		if d.values == maxValues+1 {
			d.whole("", "more than %d names and values, those of aliases counted each time", maxValues)
		}
		return nil
	}
	if n.Style&yaml.TaggedStyle != 0 {
		d.fault(place{n.Line, n.Column}, "a value that begins with ! needs quotes", "the tag %s means nothing here", n.Tag)
		return nil
	}
	return n
}

func isEmpty(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && n.Tag == "!!null"
}

// nodeWord says what a node is.
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

// formWord says what a parameter has to be.
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
		return "a mapping"
	case stage.Named:
		return "a mapping by name"
	case stage.Cases, stage.Choices:
		return "a list of mappings"
	}
	return "a single value"
}

// formExample shows how a parameter is written.
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
		return "{...}"
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

// args decodes a mapping of params. at is what the mapping belongs to, for what
// is missing in it, and what is its name in messages: "topic shop.events". It is
// not ok if there were faults. Then what was faulty is left out, but lists and
// mappings are there without what was faulty in them: more can be checked.
func (d *document) args(n *yaml.Node, at expr.Source, what string, params []stage.Param) (args stage.Args, ok bool) {
	before := len(d.faults)
	given := map[string]place{}
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
		d.fault(place{n.Line, n.Column}, paramNames(params), "%s is a mapping, but here is %s", what, nodeWord(n))
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
			// A constant of the program: it decodes, or its test fails.
			def := stage.Arg{Name: p.Name, Key: at, Value: expr.Source{Text: p.Default, Line: at.Line, Col: at.Col}}
			d.text(&def, p, &scalar{text: p.Default, start: place{at.Line, at.Col}, plain: true})
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
		return "it takes nothing"
	}
	return "it takes " + strings.Join(names, ", ")
}

// key decodes a name on the left of a colon.
func (d *document) key(n *yaml.Node, given map[string]place) (*scalar, bool) {
	if n = d.resolve(n); n == nil {
		return nil, false
	}
	if n.Kind != yaml.ScalarNode {
		d.fault(place{n.Line, n.Column}, "a value that begins with [ or { needs quotes", "a name is expected here, not %s", nodeWord(n))
		return nil, false
	}
	s := d.scalar(n)
	if s.text == "" {
		d.fault(s.start, "", "there is no name before the colon")
		return nil, false
	}
	if first, twice := given[s.text]; twice {
		d.fault(s.start, "remove one of them", "%s is here for the second time; the first is at %d:%d", s.text, first.line, first.col)
		return nil, false
	}
	given[s.text] = s.start
	return s, true
}

func (d *document) arg(key, value *yaml.Node, what string, params []stage.Param, given map[string]place) (stage.Arg, bool) {
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
		hint := expr.Nearest(name.text, names)
		switch {
		case name.text == "<<":
			hint = "merge keys are not taken: write out what is merged, or use an alias for a whole value"
		case hint == "":
			hint = paramNames(params)
		}
		d.fault(name.start, hint, "%s has no %q", what, name.text)
		return stage.Arg{}, false
	}
	arg := stage.Arg{Name: name.text, Key: name.source()}
	ok = d.value(&arg, params[i], value)
	return arg, ok
}

// value decodes the value of a parameter. It returns false if there is none.
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
			hint = "an expression that begins with { or [ needs quotes"
		}
		d.fault(place{n.Line, n.Column}, hint, "%s is %s, but here is %s", p.Name, formWord(p), nodeWord(n))
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
		return wrong() // null is an expression
	}
	s := d.scalar(n)
	arg.Value = s.source()
	return d.text(arg, p, s)
}

// item returns an item, and remembers if it is faulty.
func (d *document) item(key expr.Source, args stage.Args, ok bool) stage.Item {
	if !ok {
		d.faulty[place{key.Line, key.Col}] = true
	}
	return stage.Item{Key: key, Args: args}
}

// entries decodes a mapping of any names.
func (d *document) entries(arg *stage.Arg, p stage.Param, n *yaml.Node) {
	given := map[string]place{}
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
				hint = "an expression that begins with { or [ needs quotes"
			}
			d.fault(place{value.Line, value.Column}, hint, "%s is to be %s, but here is %s", key.text, entryWord(p), nodeWord(value))
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

// itemWord names one item of a Named parameter: topics holds a topic.
func itemWord(p stage.Param, name string) string {
	return strings.TrimSuffix(p.Name, "s") + " " + name
}

// list decodes a list.
func (d *document) list(arg *stage.Arg, p stage.Param, n *yaml.Node) {
	given := map[string]place{}
	for _, item := range n.Content {
		item := d.resolve(item)
		if item == nil {
			continue
		}
		at := place{item.Line, item.Column}
		switch p.Form {
		case stage.Words:
			if item.Kind != yaml.ScalarNode || isEmpty(item) {
				d.fault(at, p.Name+": "+formExample(p), "%s holds names, but here is %s", p.Name, nodeWord(item))
				continue
			}
			s := d.scalar(item)
			if first, twice := given[s.text]; twice {
				d.fault(s.start, "remove one of them", "%s is here for the second time; the first is at %d:%d", s.text, first.line, first.col)
				continue
			}
			given[s.text] = s.start
			if d.allowed(p, s) {
				arg.Words = append(arg.Words, s.source())
			}
		case stage.Cases:
			key := expr.Source{Line: at.line, Col: at.col}
			args, ok := d.args(item, key, "an item of "+p.Name, p.Params)
			arg.Items = append(arg.Items, d.item(key, args, ok))
		case stage.Choices:
			arg.Items = append(arg.Items, d.choice(p, item))
		}
	}
}

// choice decodes a mapping of one name and what it takes. If it is no such
// thing, the item has no arguments.
func (d *document) choice(p stage.Param, n *yaml.Node) stage.Item {
	at := place{n.Line, n.Column}
	item := stage.Item{Key: expr.Source{Line: at.line, Col: at.col}}
	names := make([]string, len(p.Params))
	for i := range p.Params {
		names[i] = p.Params[i].Name
	}
	one := strings.TrimSuffix(p.Name, "s")
	if n.Kind != yaml.MappingNode || len(n.Content) == 0 {
		d.fault(at, "- filter: {keep: EXPRESSION}", "a %s is a mapping of one name, but here is %s", one, nodeWord(n))
		return item
	}
	key, ok := d.key(n.Content[0], map[string]place{})
	if !ok {
		return item
	}
	item.Key = key.source()
	i := slices.Index(names, key.text)
	if i < 0 {
		hint := expr.Nearest(key.text, names)
		if hint == "" {
			hint = "there are " + strings.Join(names, ", ")
		}
		d.fault(key.start, hint, "there is no %s %q", one, key.text)
		return item
	}
	if len(n.Content) > 2 {
		second := n.Content[2]
		d.fault(place{second.Line, second.Column}, "indent what belongs to "+key.text+" below it, or begin the next with a dash", "a %s is one name and what it takes; here is a second", one)
		return item
	}
	args, ok := d.args(n.Content[1], item.Key, key.text, p.Params[i].Params)
	item.Args = stage.Args{{Name: key.text, Key: item.Key, Items: []stage.Item{d.item(item.Key, args, ok)}}}
	return item
}

// allowed checks a word.
func (d *document) allowed(p stage.Param, s *scalar) bool {
	if s.text == "" {
		d.fault(s.start, "", "%s is empty", p.Name)
		return false
	}
	if len(p.Values) == 0 || slices.Contains(p.Values, s.text) {
		return true
	}
	hint := expr.Nearest(s.text, p.Values)
	if hint == "" && len(p.Values) < 4 {
		hint = "it is " + strings.Join(p.Values, " or ")
	} else if hint == "" {
		hint = "it is one of " + strings.Join(p.Values, ", ")
	}
	d.fault(s.start, hint, "%s cannot be %q", p.Name, s.text)
	return false
}

// text decodes a single value.
func (d *document) text(arg *stage.Arg, p stage.Param, s *scalar) bool {
	if s.broken {
		return false
	}
	loose := s.plain || s.given
	switch p.Form {
	case stage.Word:
		return d.allowed(p, s)
	case stage.Expression:
		return true
	case stage.Number:
		n, err := strconv.ParseInt(s.text, 10, 64)
		switch {
		case err != nil || !loose:
			d.fault(s.start, "write it in digits, without quotes", "%s is a whole number, not %q", p.Name, s.text)
			return false
		case n < p.Min || n > p.Max:
			d.fault(s.start, "", "%s is from %d to %d, not %d", p.Name, p.Min, p.Max, n)
			return false
		}
		arg.Number = n
	case stage.Flag:
		if s.text != "true" && s.text != "false" || !loose {
			d.fault(s.start, "write true or false, without quotes", "%s is true or false, not %q", p.Name, s.text)
			return false
		}
		arg.Flag = s.text == "true"
	case stage.Duration:
		v, ok := parseDuration(s.text)
		if !ok {
			d.fault(s.start, "numbers with units, such as 250ms, 10m, 1h30m or 7d", "%s is a duration, not %q", p.Name, s.text)
			return false
		}
		arg.Duration = v
	}
	return true
}

var daysBefore = regexp.MustCompile(`^([0-9]{1,5})d(.*)$`)

// parseDuration takes what time.ParseDuration does, but nothing below zero, and
// days in front.
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
