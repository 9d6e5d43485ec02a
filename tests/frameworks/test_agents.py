"""Agent frameworks, unmodified, reach a checked answer by tools when only their base URL is changed: on nano where they let its
prompt be short, smolagents on a scripted worker (its own prompt has 2,000 words, and it ends by a call that nano never saw)."""

import asyncio
from typing import Any

import pytest

from tests.frameworks import lab

QUESTION = "What is 19 + 23? Use add."


def sum_of(a: int, b: int) -> int:
    """Adds two numbers.

    Args:
        a: the first
        b: the second
    """
    return a + b


sum_of.__name__ = "add"


@pytest.mark.parametrize("api", ["chat", "responses"])
@pytest.mark.parametrize("stream", [False, True])
def test_openai_agents(nano: str, api: str, stream: bool) -> None:
    from agents import Agent, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner, function_tool, set_tracing_disabled
    from openai import AsyncOpenAI

    set_tracing_disabled(True)

    async def run() -> Any:
        client = AsyncOpenAI(base_url=f"{nano}/v1", api_key="none")
        kind = OpenAIChatCompletionsModel if api == "chat" else OpenAIResponsesModel
        model = kind(model="auto", openai_client=client)
        tools: list[Any] = [function_tool(tool) for tool in lab.TOOLS.values()]
        agent = Agent(name="errand", instructions=lab.SYSTEM, model=model, tools=tools)
        if stream:
            result = Runner.run_streamed(agent, lab.QUESTION)
            async for _ in result.stream_events():
                pass
            return result.final_output
        return (await Runner.run(agent, lab.QUESTION)).final_output

    assert asyncio.run(run()) == lab.ANSWER


@pytest.mark.parametrize("responses", [False, True])
def test_langgraph(nano: str, responses: bool) -> None:
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI
    from langgraph.graph import START, MessagesState, StateGraph
    from langgraph.prebuilt import ToolNode, tools_condition

    tools = [tool(one) for one in lab.TOOLS.values()]
    llm = ChatOpenAI(base_url=f"{nano}/v1", api_key="none", model="auto", use_responses_api=responses)
    model = llm.bind_tools(tools, strict=True)
    graph = StateGraph(MessagesState)
    graph.add_node("model", lambda state: {"messages": [model.invoke(state["messages"])]})
    graph.add_node("tools", ToolNode(tools))
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", tools_condition)
    graph.add_edge("tools", "model")
    final = graph.compile().invoke({"messages": [("system", lab.SYSTEM), ("user", lab.QUESTION)]})
    assert final["messages"][-1].text == lab.ANSWER


@pytest.mark.parametrize("api", ["chat", "responses", "anthropic"])
def test_pydantic_ai(nano: str, api: str) -> None:
    from pydantic_ai import Agent
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.providers.anthropic import AnthropicProvider
    from pydantic_ai.providers.openai import OpenAIProvider

    model: Any
    if api == "anthropic":
        model = AnthropicModel("auto", provider=AnthropicProvider(api_key="none", base_url=nano))
    else:
        provider = OpenAIProvider(base_url=f"{nano}/v1", api_key="none")
        model = (OpenAIChatModel if api == "chat" else OpenAIResponsesModel)("auto", provider=provider)
    agent = Agent(model, instructions=lab.SYSTEM, tools=list(lab.TOOLS.values()))
    assert agent.run_sync(lab.QUESTION).output == lab.ANSWER


def test_smolagents(url: str) -> None:
    from smolagents import OpenAIServerModel, ToolCallingAgent, tool

    model = OpenAIServerModel(model_id="auto", api_base=f"{url}/v1", api_key="none")
    agent = ToolCallingAgent(tools=[tool(sum_of)], model=model, max_steps=4, verbosity_level=0)
    assert str(agent.run(QUESTION)) == "42"
