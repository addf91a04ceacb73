package processor

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"millrace/pipeline/cli"
	"millrace/pipeline/expr"
	"millrace/pipeline/stage"
)

// StagesCommand returns `processor stages`.
func StagesCommand(e *cli.Env) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "stages [NAME]",
		Short: "List the kinds of stages, or the parameters of one",
		Example: `  processor stages
  processor stages lookup`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			kinds := e.StageKinds()
			names := slices.Sorted(maps.Keys(kinds))
			if len(args) == 1 {
				if _, ok := kinds[args[0]]; !ok {
					return cli.Usagef("%s", cli.UnknownName("stage", args[0], names))
				}
				names = args
			}
			if asJSON {
				docs := []stageDoc{}
				for _, name := range names {
					docs = append(docs, newStageDoc(kinds[name]))
				}
				return cli.PrintJSON(e.Stdout, docs)
			}
			if len(args) == 1 {
				return printStage(e.Stdout, kinds[args[0]])
			}
			for _, name := range names {
				if err := cli.PrintItem(e.Stdout, name, 10, cli.FirstSentence(kinds[name].Doc)); err != nil {
					return err
				}
			}
			_, err := fmt.Fprintln(e.Stdout, "\nRun 'processor stages NAME' for the parameters of a stage.")
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
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

// formText returns the syntax of a parameter.
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
	p := cli.Printer{Out: w}
	p.Prose("", k.Name+": "+cli.LowerFirst(k.Doc))
	p.Line("")
	printParams(&p, "  ", k.Params)
	p.Line("")
	p.Line("Every stage also takes name, on: [TYPE, ...] and on_error: dead_letter | skip | stop.")
	p.Line("")
	p.Line("Example:")
	p.Line("")
	p.Line("  - %s:", k.Name)
	for l := range strings.Lines(k.Example) {
		p.Line("      %s", strings.TrimRight(l, "\n"))
	}
	return p.Err
}

func printParams(p *cli.Printer, indent string, params []stage.Param) {
	for _, param := range params {
		head := param.Name + ": " + formText(param)
		switch {
		case param.Required:
			head += "  (required)"
		case param.Default != "":
			head += "  (default: " + param.Default + ")"
		}
		p.Line("%s%s", indent, head)
		doc := param.Doc
		if len(param.Values) > 6 {
			doc += " Values: " + strings.Join(param.Values, ", ") + "."
		}
		p.Prose(indent+"    ", doc)
		printParams(p, indent+"    ", param.Params)
	}
}

// FunctionsCommand returns `processor functions`.
func FunctionsCommand(e *cli.Env) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "functions [NAME]",
		Short: "List the functions of expressions",
		Long: `Lists the functions that expressions can call. With NAME, or a part of a name, it
shows the signatures and an example of the matching functions.`,
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
					return cli.Usagef("%s", cli.UnknownName("function", args[0], names))
				}
			}
			switch {
			case asJSON:
				docs := []functionDoc{}
				for _, f := range found {
					docs = append(docs, functionDoc(f))
				}
				return cli.PrintJSON(e.Stdout, docs)
			case len(args) == 1:
				return printFunctions(e.Stdout, found)
			}
			return listFunctions(e.Stdout, found)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
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

// findFunctions returns the function with this name, or else all functions whose names
// contain it, ignoring case.
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
	p := cli.Printer{Out: w}
	width := 0
	for _, f := range functions {
		width = max(width, len(f.Name))
	}
	group := ""
	for _, f := range functions {
		if f.Group != group {
			if group != "" {
				p.Line("")
			}
			group = f.Group
			p.Line("%s", strings.ToUpper(group[:1])+group[1:])
		}
		p.Item("  "+f.Name, width+4, f.Doc)
	}
	p.Line("")
	p.Line("Run 'processor functions NAME' for the signatures of a function. Expressions also have the operators of CEL:")
	p.Line("+ - * / %%, == != < <= > >=, && || !, in, CONDITION ? THEN : ELSE.")
	return p.Err
}

func printFunctions(w io.Writer, functions []expr.Function) error {
	p := cli.Printer{Out: w}
	for i, f := range functions {
		if i > 0 {
			p.Line("")
		}
		for _, s := range f.Signatures {
			p.Line("%s", s)
		}
		p.Prose("    ", f.Doc)
		if f.Example != "" {
			p.Line("    %s", f.Example)
		}
	}
	return p.Err
}
