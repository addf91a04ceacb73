package app

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"millrace/pipeline/expr"
	"millrace/pipeline/stage"
)

// proseWidth is how wide text for people is set.
const proseWidth = 88

func stagesCommand(e *Env) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "stages [NAME]",
		Short: "Say which stages there are, and what one takes",
		Example: `  processor stages
  processor stages lookup`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			kinds := stage.Builtin()
			names := slices.Sorted(maps.Keys(kinds))
			if len(args) == 1 {
				if _, ok := kinds[args[0]]; !ok {
					return Usagef("%s", unknownName("stage", args[0], names))
				}
				names = args
			}
			if asJSON {
				docs := []stageDoc{}
				for _, name := range names {
					docs = append(docs, newStageDoc(kinds[name]))
				}
				return printJSON(e.Stdout, docs)
			}
			if len(args) == 1 {
				return printStage(e.Stdout, kinds[args[0]])
			}
			for _, name := range names {
				if err := printItem(e.Stdout, name, 10, firstSentence(kinds[name].Doc)); err != nil {
					return err
				}
			}
			_, err := fmt.Fprintln(e.Stdout, "\n'processor stages NAME' says what one of them takes.")
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return cmd
}

// stageDoc is a stage.Kind in JSON.
type stageDoc struct {
	Name    string     `json:"name"`
	Doc     string     `json:"doc"`
	Params  []paramDoc `json:"params"`
	Example string     `json:"example"` // its parameters, as YAML
}

type paramDoc struct {
	Name     string     `json:"name"`
	Form     string     `json:"form"`
	Doc      string     `json:"doc"`
	Required bool       `json:"required,omitempty"`
	Default  string     `json:"default,omitempty"`
	Values   []string   `json:"values,omitempty"`
	Params   []paramDoc `json:"params,omitempty"`
}

func newStageDoc(k stage.Kind) stageDoc {
	return stageDoc{Name: k.Name, Doc: k.Doc, Params: paramDocs(k.Params), Example: k.Example}
}

func paramDocs(params []stage.Param) (docs []paramDoc) {
	for _, p := range params {
		docs = append(docs, paramDoc{
			Name: p.Name, Form: formText(p), Doc: p.Doc, Required: p.Required, Default: p.Default, Values: p.Values, Params: paramDocs(p.Params),
		})
	}
	return docs
}

// formText says how a parameter is written.
func formText(p stage.Param) string {
	switch p.Form {
	case stage.Expression:
		return "EXPRESSION"
	case stage.Assignments:
		return "{PATH: EXPRESSION, ...}"
	case stage.Words:
		return "[NAME, ...]"
	case stage.Number:
		return "NUMBER"
	case stage.Duration:
		return "DURATION"
	case stage.Flag:
		return "true | false"
	case stage.Texts:
		return "{NAME: TEXT, ...}"
	case stage.Group:
		return "{" + inner(p) + "}"
	case stage.Named:
		return "{NAME: {" + inner(p) + "}, ...}"
	case stage.Cases:
		return "[{" + inner(p) + "}, ...]"
	case stage.Choices:
		return "[one of {" + inner(p) + "}, ...]"
	}
	if n := len(p.Values); n > 0 && n <= 6 {
		return strings.Join(p.Values, " | ")
	}
	return "TEXT"
}

func inner(p stage.Param) string {
	names := make([]string, len(p.Params))
	for i := range p.Params {
		names[i] = p.Params[i].Name
	}
	return strings.Join(names, ", ")
}

func printStage(w io.Writer, k stage.Kind) error {
	p := printer{w: w}
	p.prose("", k.Name+": "+lowerFirst(k.Doc))
	p.line("")
	printParams(&p, "  ", k.Params)
	p.line("")
	p.line("Every stage also takes name, on: [TYPE, ...] and on_error: dead_letter | skip | stop.")
	p.line("")
	p.line("Example:")
	p.line("")
	p.line("  - %s:", k.Name)
	for l := range strings.Lines(k.Example) {
		p.line("      %s", strings.TrimRight(l, "\n"))
	}
	return p.err
}

func printParams(p *printer, indent string, params []stage.Param) {
	for _, param := range params {
		head := param.Name + ": " + formText(param)
		switch {
		case param.Required:
			head += "  (required)"
		case param.Default != "":
			head += "  (default: " + param.Default + ")"
		}
		p.line("%s%s", indent, head)
		doc := param.Doc
		if len(param.Values) > 6 {
			doc += " It is one of " + strings.Join(param.Values, ", ") + "."
		}
		p.prose(indent+"    ", doc)
		printParams(p, indent+"    ", param.Params)
	}
}

func functionsCommand(e *Env) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "functions [NAME]",
		Short: "Say which functions expressions can call",
		Long: `Lists what expressions can call. With a name, or a part of one, those functions
with all ways to call them and an example.`,
		Example: `  processor functions
  processor functions sha256
  processor functions math.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			all := expr.Functions()
			found := all
			if len(args) == 1 {
				found = findFunctions(all, args[0])
				if len(found) == 0 {
					var names []string
					for _, f := range all {
						names = append(names, f.Name)
					}
					return Usagef("%s", unknownName("function", args[0], names))
				}
			}
			switch {
			case asJSON:
				docs := []functionDoc{}
				for _, f := range found {
					docs = append(docs, functionDoc(f))
				}
				return printJSON(e.Stdout, docs)
			case len(args) == 1:
				return printFunctions(e.Stdout, found)
			}
			return listFunctions(e.Stdout, found)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return cmd
}

// functionDoc is an expr.Function in JSON.
type functionDoc struct {
	Group      string   `json:"group"`
	Name       string   `json:"name"`
	Signatures []string `json:"signatures"`
	Doc        string   `json:"doc"`
	Example    string   `json:"example,omitempty"` // an expression that is true
}

// findFunctions returns the function of that name, else those that have it in
// their names.
func findFunctions(all []expr.Function, name string) (found []expr.Function) {
	for _, f := range all {
		if f.Name == name {
			return []expr.Function{f}
		}
		if strings.Contains(strings.ToLower(f.Name), strings.ToLower(name)) {
			found = append(found, f)
		}
	}
	return found
}

func listFunctions(w io.Writer, functions []expr.Function) error {
	p := printer{w: w}
	width := 0
	for _, f := range functions {
		width = max(width, len(f.Name))
	}
	group := ""
	for _, f := range functions {
		if f.Group != group {
			if group != "" {
				p.line("")
			}
			group = f.Group
			p.line("%s", strings.ToUpper(group[:1])+group[1:])
		}
		p.item("  "+f.Name, width+4, f.Doc)
	}
	p.line("")
	p.line("'processor functions NAME' shows how to call one. Beside them there are the operators of CEL:")
	p.line("+ - * / %%, == != < <= > >=, && || !, in, CONDITION ? THEN : ELSE.")
	return p.err
}

func printFunctions(w io.Writer, functions []expr.Function) error {
	p := printer{w: w}
	for i, f := range functions {
		if i > 0 {
			p.line("")
		}
		for _, s := range f.Signatures {
			p.line("%s", s)
		}
		p.prose("    ", f.Doc)
		if f.Example != "" {
			p.line("    %s", f.Example)
		}
	}
	return p.err
}

func unknownName(what, name string, names []string) string {
	hint := expr.Nearest(name, names)
	if hint == "" {
		hint = "there are " + strings.Join(names[:min(12, len(names))], ", ")
		if len(names) > 12 {
			hint += ", ..."
		}
	}
	return fmt.Sprintf("there is no %s %q: %s", what, name, hint)
}

// printJSON writes v for programs and people.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// A printer writes text for people, and keeps the first error.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) line(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format+"\n", args...)
	}
}

// prose writes sentences, wrapped, each line behind the indent.
func (p *printer) prose(indent, text string) {
	for _, l := range wrap(text, proseWidth-len(indent)) {
		p.line("%s%s", indent, l)
	}
}

// item writes a name and, in the column, what it is.
func (p *printer) item(name string, column int, text string) {
	for i, l := range wrap(text, proseWidth-column) {
		if i > 0 {
			name = ""
		}
		p.line("%-*s%s", column, name, l)
	}
}

func printItem(w io.Writer, name string, column int, text string) error {
	p := printer{w: w}
	p.item(name, column, text)
	return p.err
}

// wrap breaks text between words. A word that is too long has a line of its own.
func wrap(text string, width int) (lines []string) {
	line := ""
	for word := range strings.FieldsSeq(text) {
		if line != "" && len(line)+1+len(word) > width {
			lines = append(lines, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}

func firstSentence(doc string) string {
	first, _, found := strings.Cut(doc, ". ")
	if found {
		first += "."
	}
	return first
}

func lowerFirst(text string) string {
	if text == "" || len(text) > 1 && text[1] >= 'A' && text[1] <= 'Z' {
		return text
	}
	return strings.ToLower(text[:1]) + text[1:]
}
