"""The MCP door: the Model Context Protocol over streamable HTTP, by which assistants draw."""
