package worker

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"text/template"
	"text/template/parse"
)

// orEmpty is what every printed value goes through. Templates print a missing member
// of a map as "<no value>", which nobody wants on a phone.
const orEmpty = "_orEmpty"

var templateFuncs = template.FuncMap{orEmpty: func(v any) any {
	if v == nil {
		return ""
	}
	return v
}}

// parseTemplate compiles a reply. What it finds wrong includes top-level names that no
// event has; the error is one line without a position.
func parseTemplate(name, src string) (*template.Template, error) {
	t, err := template.New(name).Funcs(templateFuncs).Parse(src)
	if err != nil {
		// "template: <name>:<line>: <what>", and the line is counted within the text
		text := strings.TrimPrefix(err.Error(), "template: "+name+":")
		if _, what, ok := strings.Cut(text, ": "); ok {
			text = what
		}
		return nil, fmt.Errorf("template: %s", text)
	}
	for _, sub := range t.Templates() {
		if sub.Tree == nil || sub.Root == nil {
			continue
		}
		// What dot is within a template of its own depends on who calls it.
		if err := checkNode(sub.Root, sub.Name() == name); err != nil {
			return nil, fmt.Errorf("template: %w", err)
		}
	}
	return t, nil
}

// checkNode walks a template, looks at the names that are asked of the event itself,
// and lets every printed value pass through orEmpty. atRoot says that dot is the event.
func checkNode(n parse.Node, atRoot bool) error {
	switch n := n.(type) {
	case *parse.ListNode:
		if n == nil {
			return nil
		}
		for _, c := range n.Nodes {
			if err := checkNode(c, atRoot); err != nil {
				return err
			}
		}
	case *parse.ActionNode:
		if err := checkPipe(n.Pipe, atRoot); err != nil {
			return err
		}
		if len(n.Pipe.Decl) == 0 { // what is assigned is not printed
			id := parse.NewIdentifier(orEmpty).SetPos(n.Pos).SetTree(nil)
			n.Pipe.Cmds = append(n.Pipe.Cmds, &parse.CommandNode{NodeType: parse.NodeCommand, Pos: n.Pos, Args: []parse.Node{id}})
		}
	case *parse.IfNode:
		return checkBranch(&n.BranchNode, atRoot, atRoot)
	case *parse.RangeNode:
		return checkBranch(&n.BranchNode, atRoot, false)
	case *parse.WithNode:
		return checkBranch(&n.BranchNode, atRoot, false)
	case *parse.TemplateNode:
		return checkPipe(n.Pipe, atRoot)
	}
	return nil
}

func checkBranch(b *parse.BranchNode, atRoot, inside bool) error {
	if err := checkPipe(b.Pipe, atRoot); err != nil {
		return err
	}
	if err := checkNode(b.List, inside); err != nil {
		return err
	}
	return checkNode(b.ElseList, atRoot)
}

func checkPipe(p *parse.PipeNode, atRoot bool) error {
	if p == nil {
		return nil
	}
	for _, c := range p.Cmds {
		for _, arg := range c.Args {
			if err := checkArg(arg, atRoot); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkArg(n parse.Node, atRoot bool) error {
	switch n := n.(type) {
	case *parse.PipeNode:
		return checkPipe(n, atRoot)
	case *parse.ChainNode:
		return checkArg(n.Node, atRoot)
	case *parse.FieldNode:
		if atRoot {
			return checkName(n.Ident[0])
		}
	case *parse.VariableNode:
		// $ is the event everywhere in the main text, where root is known.
		if atRoot && n.Ident[0] == "$" && len(n.Ident) > 1 {
			return checkName(n.Ident[1])
		}
	}
	return nil
}

func checkName(name string) error {
	switch name {
	case "User", "Text", "Key", "App", "Data":
		return nil
	}
	return fmt.Errorf("no field .%s; there are .User .Text .Key .App .Data, and WeCom's own names below .Data", name)
}

// decodeData makes a payload walkable for templates. Numbers keep their digits.
func decodeData(raw json.RawMessage) any {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var v any
	if dec.Decode(&v) != nil {
		return nil
	}
	return v
}
